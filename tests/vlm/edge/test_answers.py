import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vlm.config.errors import InputError
from vlm.config.params import load_params
from vlm.edge.answers import EdgeEvaluation
from vlm.edge.classifier import Classifier
from vlm.evaluation import Evaluation, prior


@pytest.fixture
def job(exported, make_split):
    """job(samples=8) evaluates the exported embedded model on ten badges."""
    params = load_params()

    def make(samples=None, greedy=True, **values):
        known = {"task": params.task, "model": params.model, "folder": str(exported), "data": make_split("test", 10)}
        return EdgeEvaluation(**(known | values), samples=samples, greedy=greedy)

    return make


def test_the_answers_are_those_of_pytorch(job, tmp_path):
    """At F16, to which `exported` converts."""
    evaluation = job()
    evaluation.run(tmp_path, lambda event: None)
    params = load_params()
    reference = tmp_path / "reference"
    reference.mkdir()
    Evaluation(
        params.task, params.model, params.image, batch_size=10, data=evaluation.data, engine="posterior"
    ).run(reference, lambda event: None)  # fmt: skip
    found, expected = pd.read_parquet(tmp_path / "edge.parquet"), pd.read_parquet(reference / "structured.parquet")
    assert found[["id", "label", "text", "predicted"]].equals(expected[["id", "label", "text", "predicted"]])
    assert found["plain_probabilities"].isna().all()
    difference = np.abs(np.stack(found["probabilities"]) - np.stack(expected["probabilities"])).max()
    assert 0 < difference < 0.01
    notes = json.loads((tmp_path / "edge.json").read_text())
    assert notes["types"] == "F16+F16" and 0 <= notes["greedy_agreement"] <= 1
    assert notes["bytes"] == sum(file.stat().st_size for file in Path(evaluation.folder).glob("*.gguf"))
    assert json.loads((tmp_path / "runtime.json").read_text())["samples"] == 10


def test_the_answers_are_those_of_pytorch_with_the_label_prior_corrected(exported, job, make_split, tmp_path):
    params, reference, folder = load_params(), tmp_path / "reference", tmp_path / "edge"
    reference.mkdir()
    shutil.copytree(exported, folder)
    evaluation = job(folder=str(folder))
    corrected = {"prior": "batch", "prior_samples": 12, "train": make_split("train", 12)}
    Evaluation(
        params.task, params.model, params.image, 10, data=evaluation.data, engine="posterior", **corrected
    ).run(reference, lambda event: None)  # fmt: skip
    entry = json.loads((reference / "structured.json").read_text())["prior"]
    known = Classifier.load(folder)
    known.model_copy(update={"offsets": tuple(prior.offsets(entry))}).save(folder)
    evaluation.run(tmp_path, lambda event: None)
    found, expected = pd.read_parquet(tmp_path / "edge.parquet"), pd.read_parquet(reference / "structured.parquet")
    assert found[["id", "label", "text", "predicted"]].equals(expected[["id", "label", "text", "predicted"]])
    for column in ("probabilities", "plain_probabilities"):
        assert 0 < np.abs(np.stack(found[column]) - np.stack(expected[column])).max() < 0.01
    assert np.abs(np.stack(found["probabilities"]) - np.stack(found["plain_probabilities"])).max() > 0.05


def test_a_resumed_run_asks_only_about_the_rest_and_ends_the_same(job, tmp_path):
    class Killed(Exception):
        pass

    def kill(event):
        if event.done == 2:
            raise Killed

    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    whole.mkdir(), resumed.mkdir()
    job(samples=4).run(whole, lambda event: None)
    with pytest.raises(Killed):
        job(samples=4).run(resumed, kill)
    job(samples=4).run(resumed, lambda event: None)
    assert (whole / "edge.parquet").read_bytes() == (resumed / "edge.parquet").read_bytes()
    assert (whole / "edge.json").read_text() == (resumed / "edge.json").read_text()
    assert json.loads((resumed / "runtime.json").read_text())["samples"] == 2


def test_some_samples_are_spread_over_the_split(job, tmp_path):
    job(samples=2, greedy=False).run(tmp_path, lambda event: None)
    assert pd.read_parquet(tmp_path / "edge.parquet")["id"].tolist() == ["test-0", "test-5"]
    assert "greedy_agreement" not in json.loads((tmp_path / "edge.json").read_text())


def test_a_classifier_of_another_task_is_one_line(job, tmp_path):
    task = load_params().task
    other = task.model_copy(update={"labels": tuple(reversed(task.labels))})
    with pytest.raises(InputError, match="is a classifier for other labels than car_badges's; export it again"):
        job(task=other).run(tmp_path, lambda event: None)
