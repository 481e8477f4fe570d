import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlm.data import dataset

ROOT = Path(__file__).parents[2]
WRITTEN = """
    data/test.parquet data/train.parquet data/validation.parquet metrics/prepare.json metrics/runtime/prepare.json
    plots/prepare/details.json plots/prepare/skipped.csv
""".split()


@pytest.fixture
def work(tmp_path):
    """A working directory as the stage finds it, asking for a few rows."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    params = (ROOT / "params.yaml").read_text()
    for split, rows in (("train", 40), ("validation", 6), ("test", 20)):
        line = next(line for line in params.splitlines() if line.startswith(f"  {split}: "))
        params = params.replace(line, f"  {split}: {rows}", 1)
    (tmp_path / "params.yaml").write_text(params)
    return tmp_path


def with_pets(work: Path, model: str) -> None:
    """Gives the working directory a task of cats and dogs, of which one cat cannot be read, and a model."""
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (work / "pets" / label).mkdir(parents=True)
        for i in range(40):
            pixels = rng.integers(0, 256, (9, 12, 3), np.uint8)
            Image.fromarray(pixels).save(work / "pets" / label / f"{i}.png")
    (work / "pets/cat/7.png").write_bytes(b"")
    (work / "configs/tasks/pets.yaml").write_text(
        "source: {folder: pets}\nlabels: [cat, dog]\nprompt: {user: Which?}\n"
    )
    params = (work / "params.yaml").read_text()
    (work / "params.yaml").write_text(
        params.replace("model: tiny", f"model: {model}").replace("task: car_badges", "task: pets")
    )


def prepare(work: Path, stage: str = "prepare") -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", f"stages.{stage}"],
        cwd=work,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def written(work: Path) -> dict[str, bytes]:
    files = (file for folder in ("data", "metrics", "plots") for file in (work / folder).rglob("*") if file.is_file())
    return {file.relative_to(work).as_posix(): file.read_bytes() for file in files}


def test_the_stage_writes_its_files_and_the_same_ones_again(work):
    first = prepare(work)
    assert first.returncode == 0, first.stderr
    assert first.stdout == "prepare: 40 train, 6 validation, 20 test; 0 pictures left out\n"
    assert [line.split(" in ")[0] for line in first.stderr.splitlines() if " pictures in " in line] == [
        "40/40 train pictures",
        "6/6 validation pictures",
        "20/20 test pictures",
    ]
    files = written(work)
    assert sorted(files) == WRITTEN

    assert prepare(work).returncode == 0
    again = written(work)
    assert {name for name in files if files[name] != again[name]} <= {"metrics/runtime/prepare.json"}

    assert json.loads(files["metrics/prepare.json"]) == {"test_changed": 0}
    metrics = json.loads(files["plots/prepare/details.json"])
    smallest, largest = metrics.pop("smallest_class"), metrics.pop("largest_class")
    assert 0 <= smallest <= 66 / 31 <= largest
    assert metrics == {
        "train_rows": 40, "validation_rows": 6, "test_rows": 20, "left_out": 0, "classes": 31,
        "duplicates_left_out": 0, "conflicts_left_out": 0, "unreadable_left_out": 0, "other_classes_left_out": 0,
        "tied_to_another_split_left_out": 0, "excluded": 0, "relabelled": 0, "test_changed": 0, "near_duplicates": 0,
        "groups": 0, "blank": 0, "tiny_pictures": 0,
    }  # fmt: skip
    runtime = json.loads(files["metrics/runtime/prepare.json"])
    assert list(runtime) == ["samples", "seconds", "samples_per_second"]
    assert runtime["samples"] == 66 and runtime["seconds"] > 0
    assert runtime["samples_per_second"] == pytest.approx(66 / runtime["seconds"], rel=0.05)

    assert "knows nothing" not in first.stderr
    assert files["plots/prepare/skipped.csv"] == b"id,kind,reason\n"
    assert dataset.count(work / "data/test.parquet") == 20


def test_describe_draws_what_prepare_wrote(work):
    assert prepare(work, "describe").stderr.startswith("error: data/train.parquet: no such file; `dvc repro prepare`")
    prepare(work)
    result = prepare(work, "describe")
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(r"describe: 31 labels, \d+ to \d+ pictures each; plots/describe/samples.png\n", result.stdout)
    with (work / "plots/describe/class_distribution.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {tuple(sorted(row)) for row in rows} == {("count", "label", "split")}
    assert sum(int(row["count"]) for row in rows if row["split"] == "test") == 20
    assert Image.open(work / "plots/describe/samples.png").width > 500


@pytest.mark.parametrize("model", ["tiny", "450M"])
def test_a_task_of_ones_own_ends_with_one_line_and_warns_of_tiny(work, model):
    with_pets(work, model)
    result = prepare(work)
    assert result.returncode == 0, result.stderr
    assert result.stdout == (
        "prepare: 40 train, 6 validation, 20 test; 1 picture left out (1 unreadable); see plots/prepare/skipped.csv\n"
    )
    warnings = [line for line in result.stderr.splitlines() if line.startswith("warning: params.yaml: model: ")]
    assert warnings == [
        "warning: params.yaml: model: 'tiny' is a demonstration for car_badges and knows nothing about other pictures; use a "
        "real model, e.g. `-S model=450M`"
    ] * (model == "tiny")
    assert (work / "plots/prepare/skipped.csv").read_text() == "id,kind,reason\ncat/7.png,unreadable,is empty\n"


def test_fewer_rows_than_labels_is_a_warning_and_no_error(work):
    with_pets(work, "450M")
    params = (work / "params.yaml").read_text()
    (work / "params.yaml").write_text(params.replace("  test: 20", "  test: 1"))
    result = prepare(work)
    assert result.returncode == 0
    warning = "warning: params.yaml: prepare: 1 test row for 2 labels, none for 'cat'; ask for more rows"
    assert warning in result.stderr.splitlines()


def test_wrong_input_is_one_line_and_exit_code_1(work):
    params = (work / "params.yaml").read_text()
    (work / "params.yaml").write_text(params.replace("  train: 40", "  train: null"))
    result = prepare(work)
    assert result.returncode == 1
    assert result.stderr == (
        "error: params.yaml: prepare.train: null means all, but badges have no limit; give a number\n"
    )
    assert not written(work)


def test_decisions_are_counted_and_change_the_metrics(work):
    with_pets(work, "450M")
    prepare(work)
    ids, _ = dataset.ids_and_labels(work / "data/test.parquet")
    (work / "configs/decisions").mkdir(exist_ok=True)
    (work / "configs/decisions/pets.yaml").write_text(f"exclude: {{{ids[0]}: shows a shoe}}\n")
    with (work / "configs/tasks/pets.yaml").open("a") as file:
        file.write("decisions: configs/decisions/pets.yaml\n")
    result = prepare(work)
    assert result.returncode == 0, result.stderr
    assert result.stdout == (
        "prepare: 40 train, 6 validation, 19 test; 2 pictures left out (1 unreadable, 1 excluded); decisions changed 1 "
        "test row, which makes test another benchmark; see plots/prepare/skipped.csv\n"
    )
    assert json.loads((work / "metrics/prepare.json").read_text()) == {"test_changed": 1}
    assert f"{ids[0]},excluded,is excluded: shows a shoe\n" in (work / "plots/prepare/skipped.csv").read_text()
    assert dataset.ids_and_labels(work / "data/test.parquet")[0] == ids[1:]
