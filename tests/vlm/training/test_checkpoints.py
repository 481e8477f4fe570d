import dataclasses
import json
import pickle
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from tests.vlm.training.jobs import adapter
from vlm.config.events import Scalars
from vlm.training.checkpoints import last_checkpoint


def test_a_resumed_run_ends_with_the_same_adapter_and_repeats_no_finished_step(job, tmp_path):
    whole_events, events = [], []
    whole = adapter(job, tmp_path / "whole", whole_events.append)

    def stop_in_step_five(event):
        if isinstance(event, Scalars) and event.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapter(job, tmp_path / "parts", stop_in_step_five)
    assert last_checkpoint(tmp_path / "parts" / "checkpoints").name == "checkpoint-4"
    assert adapter(job, tmp_path / "parts", events.append) == whole
    # DVCLive's curves are complete, too: the earlier steps come from the checkpoint.
    assert [e for e in events if isinstance(e, Scalars)] == [e for e in whole_events if isinstance(e, Scalars)]
    assert json.loads((tmp_path / "parts" / "runtime.json").read_text())["samples"] == 8


KILLED = """
import os, pickle, signal, sys
from pathlib import Path

def die(event, arguments):
    if event == "open" and str(arguments[0]).endswith("checkpoint-8/trainer_state.json") and "w" in str(arguments[1]):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(die)
job = pickle.loads(Path(sys.argv[1]).read_bytes())
job.run(Path(sys.argv[2]), lambda event: None)
"""


def test_a_run_killed_while_writing_a_checkpoint_ends_with_the_same_adapter(job, tmp_path):
    """In the second epoch, with labels drawn at random and cached image features; bit for bit."""
    knobs = job.finetune.model_copy(update={"epochs": 2, "balance": "sqrt"})
    job = dataclasses.replace(job, finetune=knobs)
    whole = adapter(job, tmp_path / "whole")
    (tmp_path / "job").write_bytes(pickle.dumps(job))
    (tmp_path / "parts").mkdir()
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "job", tmp_path / "parts"], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "parts/checkpoints/checkpoint-8/adapter_model.safetensors").exists()
    assert last_checkpoint(tmp_path / "parts" / "checkpoints").name == "checkpoint-6"
    assert adapter(job, tmp_path / "parts") == whole


def test_a_truncated_checkpoint_is_skipped(job, tmp_path):
    whole = adapter(job, tmp_path / "a")
    checkpoints = tmp_path / "a" / "checkpoints"
    last = last_checkpoint(checkpoints)
    for name in ("adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"):
        shutil.rmtree(tmp_path / "b", ignore_errors=True)
        shutil.copytree(checkpoints, tmp_path / "b")
        broken = tmp_path / "b" / last.name / name
        broken.write_bytes(broken.read_bytes()[:-20])
        before = last_checkpoint(tmp_path / "b")
        assert before is not None
        assert before.name < last.name, name
    # A run resumed from there ends with the same adapter.
    shutil.rmtree(checkpoints)
    (tmp_path / "b").rename(checkpoints)
    assert adapter(job, tmp_path / "a") == whole


def test_an_incomplete_checkpoint_does_not_count(tmp_path):
    assert last_checkpoint(tmp_path) is None
    for step, state in ((9, "{}"), (10, "{}"), (11, '{"global_st'), (12, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        save_file({"a": torch.zeros(1)}, tmp_path / f"checkpoint-{step}" / "adapter_model.safetensors")
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            torch.save({}, tmp_path / f"checkpoint-{step}" / name)
        if state is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path).name == "checkpoint-10"
    (tmp_path / "checkpoint-10" / "optimizer.pt").unlink()
    assert last_checkpoint(tmp_path).name == "checkpoint-9"
