"""The notebook, executed: on a micro set, and on the repository's own predictions if they are there."""

import re
import shutil
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pytest

from vlm.config.params import load_params
from vlm.data import dataset, predictions
from vlm.measuring.measure import measure

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks" / "explore.ipynb"


def executed(folder):
    """Executes the notebook of a repository in the notebook's own folder, as an editor does; returns its cells by id."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    client = nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder / "notebooks")}})
    client.execute()
    return {cell["id"]: cell for cell in notebook["cells"]}


def text_of(cell):
    return cell["outputs"][-1]["data"]["text/plain"]


@pytest.fixture
def repository(tmp_path, make_split, monkeypatch):
    """A repository with answers to 40 badges: a base model that is right half of the time, and a better one."""
    for name in ("configs", "models/tiny"):
        shutil.copytree(ROOT / name, tmp_path / "r" / name)
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copyfile(ROOT / name, tmp_path / "r" / name)
    for name in ("data", "predictions", "notebooks"):
        (tmp_path / "r" / name).mkdir()
    split = make_split("test", 40)
    monkeypatch.chdir(tmp_path / "r")
    task = load_params().task
    for name, right in (("structured_eval", 2), ("final_eval", 5)):
        for of in ("test", "validation"):
            data = f"data/{of}.parquet"
            shutil.copyfile(split, data)
            answers, probabilities = [], []
            for i, label in enumerate(dataset.ids_and_labels(data)[1]):
                place = (task.labels.index(label) + (i % right == 0)) % len(task.labels)
                answers.append(task.answer(task.labels[place]))
                probabilities.append(np.full(len(task.labels), 0.5 / (len(task.labels) - 1)))
                probabilities[-1][place] = 0.5
            predictions.write(predictions.path(name, of), task, data, answers, probabilities)
            predictions.path(name, of).with_suffix(".json").write_text("{}")
        measure(name, task)
    return tmp_path / "r"


@pytest.mark.slow
def test_it_runs_on_a_micro_set(repository):
    cells = executed(repository)
    assert text_of(cells["load"]) == "<final_eval: 32 of 40 right>"
    assert re.search(r"gain +0\.3", text_of(cells["compare"]))
    assert "0.95" in text_of(cells["thresholds"])
    for name in ("show", "broken"):
        assert "image/png" in cells[name]["outputs"][-1]["data"]


def test_it_is_stored_without_outputs():
    """So that a diff shows what was written, and nothing of the machine on which it last ran."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook["cells"]:
        assert not cell["metadata"]
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
