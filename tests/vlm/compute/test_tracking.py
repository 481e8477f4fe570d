import sys
import time

import pandas as pd
import pytest

from vlm.compute.tracking import tracker
from vlm.config.errors import InputError
from vlm.config.events import Scalars


def test_dvclive_writes_the_values_and_no_pipeline(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it would fail
    with tracker(["dvclive"], "live", "run") as log:
        for step in (1, 2):
            log(Scalars(step, {"train/loss": 1 / step}))
    table = pd.read_csv("live/plots/metrics/train/loss.tsv", sep="\t")
    assert table[["step", "loss"]].values.tolist() == [[1, 1.0], [2, 0.5]]
    assert [path.name for path in tmp_path.iterdir()] == ["live"]


def test_without_trackers_scalars_are_ignored(tmp_path):
    with tracker([], "live", "run") as log:
        log(Scalars(1, {"train/loss": 1.0}))


def test_wandb_is_required_only_if_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    with pytest.raises(InputError, match=r"finetune\.track_with: wandb is not installed"), tracker(["wandb"], "", "r"):
        pass


def test_wandb_records_the_values(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with tracker(["wandb"], "live", "run7") as log:
        for step in (1, 2):
            log(Scalars(step, {"train/loss": 1 / step}))
    (folder,) = (tmp_path / "wandb").glob("offline-run-*-run7")
    deadline = time.monotonic() + 30  # wandb's own process writes the file, when it gets to it
    while not any(b"train/loss" in path.read_bytes() for path in folder.glob("*.wandb")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
