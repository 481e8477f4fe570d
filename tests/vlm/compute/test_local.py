import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import vlm
from vlm import compute
from vlm.compute import local, processes
from vlm.config.events import Scalars
from vlm.config.models import ModelConfig
from vlm.config.params import ModalParams

MODAL = ModalParams(gpu=None, containers=1, max_dollars=None, timeout=1, region=None)
CPU_MODEL = ModelConfig(name="m", id="nowhere", runs_on_cpu=True)


@dataclass(frozen=True)
class Counting:
    """A job that appends a line to a file in its folder, and fails while `broken` exists."""

    DATA_PARALLEL = False
    PACKAGES = ("evaluation", "config")
    model: ModelConfig
    data: str
    broken: str = "broken"
    seconds: float = 0

    @property
    def inputs(self):
        return [self.data]

    def run(self, directory, emit):
        with (directory / "lines").open("a") as file:
            file.write("line\n")
        emit(Scalars(3, {"train/loss": 0.5}))
        time.sleep(self.seconds)
        if Path(self.broken).exists():
            raise RuntimeError("broken")


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("data").write_text("data")
    return Counting(CPU_MODEL, "data")


def test_results_exist_inside_the_block_and_are_removed_after_it(job):
    with compute.run(job, "auto", MODAL) as directory:
        assert (directory / "lines").read_text() == "line\n"
    assert not directory.exists()


def test_the_key_is_the_same_in_dvcs_copy_of_the_repository(job, tmp_path, monkeypatch):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "weights").write_text("weights")
    copied = tmp_path / "repository/.dvc/tmp/exps/standalone/tmpx"
    copied.mkdir(parents=True)
    job = replace(job, model=CPU_MODEL.model_copy(update={"id": "../own"}), data=str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path / "repository")
    key = local.key(job)
    monkeypatch.chdir(copied)
    assert local.key(job) == key
    (tmp_path / "own" / "weights").write_text("others")
    assert local.key(job) != key


def test_unfinished_work_is_resumed_from_another_folder(job, tmp_path, monkeypatch):
    Path("broken").touch()
    with pytest.raises(RuntimeError), compute.run(job, "auto", MODAL):
        pass
    (tmp_path / "copy").mkdir()
    monkeypatch.chdir(tmp_path / "copy")
    Path("data").write_text("data")
    with compute.run(job, "auto", MODAL) as directory:
        assert (directory / "lines").read_text() == "line\nline\n"


def test_results_survive_a_stage_that_fails_to_store_them(job):
    with pytest.raises(OSError), compute.run(job, "auto", MODAL) as directory:
        raise OSError("disk full")
    assert (directory / "lines").exists()


def test_the_key_changes_with_values_and_inputs(job):
    key = local.key(job)
    assert local.key(replace(job, seconds=1)) != key
    assert local.key(job) == key
    elsewhere = job.model.model_copy(update={"runs_on_cpu": False, "gpu": "H100"})
    assert local.key(replace(job, model=elsewhere)) == key
    Path("data").write_text("other data")
    assert local.key(job) != key


def test_the_key_changes_only_with_the_code_that_determines_the_result(job, tmp_path, monkeypatch):
    """Even if the package is a copy, as in DVC's queued experiments."""
    copy = tmp_path / "vlm"
    shutil.copytree(Path(vlm.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    key = local.key(job)
    monkeypatch.setattr(vlm, "__file__", str(copy / "__init__.py"))
    assert local.key(job) == key
    for package in ("measuring", "compute", "commands", "training"):
        file = next((copy / package).glob("[a-z]*.py"))
        file.write_text(file.read_text() + "# another colour\n")
        assert local.key(job) == key
    file = copy / "evaluation" / "posterior.py"
    file.write_text(file.read_text() + "# another method\n")
    assert local.key(job) != key


def _run(job, times):
    with compute.run(job, "auto", MODAL):
        pass
    times.put(time.monotonic())


def test_two_processes_with_the_same_job_take_turns(job):
    job = replace(job, seconds=0.5)
    context = multiprocessing.get_context("fork")
    times = context.Queue()
    processes = [context.Process(target=_run, args=(job, times)) for _ in range(2)]
    for process in processes:
        process.start()
    ended = sorted(times.get(timeout=30) for _ in processes)
    for process in processes:
        process.join()
    assert ended[1] - ended[0] >= 0.5


def test_scalars_are_written_by_dvclive(job):
    with compute.run(job, "auto", MODAL, live="live"):
        pass
    assert Path("live/plots/metrics/train/loss.tsv").read_text() == "step\tloss\n3\t0.5\n"


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """An nvidia-smi that lists two GPUs."""
    file = tmp_path / "nvidia-smi"
    file.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 (UUID: GPU-1)'\necho 'GPU 1: NVIDIA H100 (UUID: GPU-2)'\n")
    file.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return file


@dataclass(frozen=True)
class Training(Counting):
    DATA_PARALLEL = True


@pytest.mark.parametrize("visible", [None, "1"])
@pytest.mark.parametrize("kind", [Counting, Training])
@pytest.mark.parametrize("on_cpu", [False, True])
def test_several_gpus_take_part_except_in_an_evaluation_that_needs_none(
    job, driver, monkeypatch, visible, kind, on_cpu
):
    """A fine-tune that saw two GPUs in one process would end up in torch's DataParallel, even with a small model."""
    started = []

    def started_by(name):
        def start(job, directory, emit, gpus):
            started.append((name, gpus))
            (directory / "result").touch()

        return start

    for name in ("run", "answer"):
        monkeypatch.setattr(processes, name, started_by(name))
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    job = kind(CPU_MODEL.model_copy(update={"runs_on_cpu": on_cpu}), job.data)
    with compute.run(job, "local", MODAL) as directory:
        here = (directory / "lines").exists()
    if visible or (kind is Counting and on_cpu):
        assert (here, started) == (True, [])
    else:
        assert (here, started) == (False, [("run", 2) if kind is Training else ("answer", ["0", "1"])])


@pytest.mark.parametrize(
    ("visible", "expected"),
    [(None, ["0", "1"]), ("1", ["1"]), ("0,1,2", ["0", "1"]), ("", []), ("-1", []), ("1,-1,0", ["1"])],
)
def test_gpus_are_those_of_the_driver_that_are_visible(driver, monkeypatch, visible, expected):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert local.gpus() == expected
    driver.unlink()
    assert local.gpus() == []


STAGE = """
import sys, time
from vlm.compute.local import end_with_dvc
end_with_dvc(interrupt=sys.argv[1] == "True")
print("started", flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


DVC = """
import os, subprocess, sys, time
subprocess.Popen(sys.argv[1:], env=os.environ | {"DVC_STAGE": "finetune"})
time.sleep(5)
"""


@pytest.mark.parametrize("shell", [[], ["/bin/sh", "-c", '"$@"; exit', "sh"]], ids=["no shell", "a shell that waits"])
@pytest.mark.parametrize("interrupt", [True, False])
def test_a_stage_ends_when_its_dvc_is_gone(interrupt, shell):
    """Interrupted where it computes itself; at once where it only watches a job on Modal, which runs on."""
    stage = [*shell, sys.executable, "-c", STAGE, str(interrupt)]
    environment = os.environ | {"PYTHONPATH": str(Path(vlm.__file__).parents[1])}
    dvc = subprocess.Popen([sys.executable, "-c", DVC, *stage], stdout=subprocess.PIPE, text=True, env=environment)
    output, _ = dvc.communicate(timeout=40)  # ends when the stage, too, has closed its end of the pipe
    assert output.split() == (["started", "interrupted"] if interrupt else ["started"])
