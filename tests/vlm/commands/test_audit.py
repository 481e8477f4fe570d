import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vlm.data import dataset
from vlm.sources import badges

ROOT = Path(__file__).parents[3]
MAKERS = {"Acura": "acura", "BMW": "bmw"}


@pytest.fixture
def work(tmp_path):
    """A folder after `prepare`, with a copy of a test photo in train."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "data").mkdir()
    rendered = badges.render_split(list(MAKERS.values()), 12, 3, 0, 0.3, workers=1)
    rows = [dataset.Row(f"badge-{i}", jpeg, list(MAKERS)[k]) for i, (k, jpeg) in enumerate(rendered)]
    splits = {
        "test": rows[:6],
        "validation": rows[6:8],
        "train": [*rows[8:], dataset.Row("again", rows[0].image, "BMW")],
    }
    for split, of_split in splits.items():
        dataset.write(tmp_path / f"data/{split}.parquet", of_split)
    return tmp_path


def run(work, *command):
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=work,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_lists_the_first_suspects_and_what_it_could_not_check(work):
    done = run(work, "vlm", "audit")
    assert done.returncode == 0, done.stderr
    summary, first, unchecked, where = done.stdout.splitlines()
    assert summary == "13 samples: 1 near duplicate"
    assert first.split(maxsplit=3)[:3] == ["1", "train/again", "near_duplicate"]
    assert "test/badge-0" in first
    assert unchecked.startswith("not checked: labels: there are no predictions yet")
    assert where.startswith("all of them: plots/audit/suspects.csv")
    assert run(work, "vlm", "audit", "--top", "0").stdout.splitlines() == [summary, unchecked, where]


def test_the_stage_writes_the_same_files_and_one_line(work):
    run(work, "vlm", "audit")
    files = ["metrics/audit.json", "plots/audit/details.json", "plots/audit/suspects.csv"]
    by_command = [(work / file).read_bytes() for file in files]
    for folder in ("metrics", "plots"):
        shutil.rmtree(work / folder)
    done = run(work, "stages.audit")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "audit: 13 samples: 1 near duplicate; see plots/audit/suspects.csv\n"
    assert [(work / file).read_bytes() for file in files] == by_command


def test_decided_suspects_are_not_printed(work):
    with (work / "configs/tasks/car_badges.yaml").open("a") as file:
        file.write("decisions: configs/decisions/car_badges.yaml\n")
    decisions = work / "configs/decisions/car_badges.yaml"
    decisions.write_text("keep: {again: another photo of it}\n")
    summary, _, where = run(work, "vlm", "audit").stdout.splitlines()
    assert summary == "13 samples: nothing suspicious; 1 decided already"
    assert where.startswith("all of them: plots/audit/suspects.csv")
    assert "kept: another photo of it" in (work / "plots/audit/suspects.csv").read_text()
    assert run(work, "stages.audit").stdout == f"audit: {summary}; see plots/audit/suspects.csv\n"
    decisions.write_text("keep: {again: }\n")
    done = run(work, "vlm", "audit")
    message = "error: configs/decisions/car_badges.yaml: keep.again: null is an empty reason; write why\n"
    assert (done.returncode, done.stderr) == (1, message)


def test_bad_input_is_one_line(work):
    done = run(work, "vlm", "audit", "--top", "-1")
    assert (done.returncode, done.stderr) == (1, "error: --top: -1: should be at least 0\n")
    (work / "data/train.parquet").unlink()
    done = run(work, "vlm", "audit")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert done.stderr.startswith("error: data/train.parquet: no such file")
    assert not (work / "plots").exists()
