"""Runs the code of Modal's containers locally: a folder replaces the volume, a function replaces the calls."""

import json
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from vlm.compute import conductor, worker
from vlm.compute.event_log import EventLog, event_of, read_events
from vlm.compute.files import sha256
from vlm.compute.request import Request
from vlm.config.errors import InputError
from vlm.config.events import Log, Progress, Scalars
from vlm.config.models import ModelConfig
from vlm.evaluation.job import Evaluation
from vlm.training.job import FineTuning


@dataclass(frozen=True)
class Steps:
    """A job that writes one line per step, and raises the error `trouble` in step `at`, `times` times."""

    model: ModelConfig
    data: str
    steps: int = 4
    at: int = 0
    trouble: str = ""
    times: int = 1
    others: int = 0  # steps of the other containers

    RESULTS: ClassVar = ("lines", "folder", "runtime.json")
    PACKAGES: ClassVar = ()

    @property
    def inputs(self):
        return [self.data]

    def run(self, directory, emit):
        file = directory / "lines"
        done = len(file.read_text().splitlines()) if file.exists() else 0
        for step in range(done + 1, self.steps + 1):
            if step == self.at and len(list(directory.glob("raised*"))) < self.times:
                (directory / f"raised{time.time_ns()}").touch()
                raise _TROUBLES[self.trouble]
            with file.open("a") as lines:
                lines.write(Path(self.data).read_text())
            emit(Scalars(step, {"loss": float(step)}))
            emit(Progress(step, self.steps + self.others))
        for checked in range(3):
            emit(Progress(checked, 2 + self.others, "line checked"))
        (directory / "folder").mkdir(exist_ok=True)
        (directory / "folder" / "result").write_text("result")
        (directory / "runtime.json").write_text("{}")


_TROUBLES = {
    "user": InputError("params.yaml: key: is wrong"),
    "bug": ValueError("a bug"),
    "memory": torch.OutOfMemoryError("CUDA out of memory."),
    "connection": ConnectionError("lost"),
    "gpu": RuntimeError("CUDA error: an illegal memory access was encountered"),
    "preempted": KeyboardInterrupt(),
}


@pytest.fixture
def job():
    return Steps(ModelConfig(name="m", id="nowhere"), "data/input")


class Modal:
    """Runs `conductor.conduct`, and `work` as soon as it is spawned, with retries like Modal's."""

    def __init__(self, folder: Path) -> None:
        self.volume, self.folder = folder / "volume", folder
        self.values: list[dict] = []
        self.sent: list[dict] = []
        self.containers = 0
        content = self.volume / "inputs" / "abc" / "content"
        content.parent.mkdir(parents=True)
        content.write_text("line\n")

    def disk(self) -> Path:
        self.containers += 1
        folder = self.folder / f"container{self.containers}"
        folder.mkdir()
        return folder

    def request(self, job, **values) -> Request:
        standard = dict(
            key="steps-1",
            inputs={"data/input": "inputs/abc"},
            from_hub=False,
            gpu="L4",
            larger_gpu="L40S",
            gpu_count=1,
            cpu_cores=2,
            memory_gib=10,
            dollars_per_second=0.5,
            containers=1,
            max_dollars=None,
            seconds=3600.0,
            region=None,
        )
        return Request.of(job, **(standard | values))

    def conduct(self, request: Request) -> dict:
        def spawn(shard: int, since: float) -> str:
            while True:
                try:
                    value = worker.work(request, shard, since, self.volume, self.disk(), lambda: None, self.sent.extend)
                    break
                except (ConnectionError, RuntimeError, KeyboardInterrupt):
                    continue
            self.values.append(value)
            return str(len(self.values) - 1)

        return conductor.conduct(
            request, self.volume, self.disk(), lambda: None, lambda: None, spawn, lambda call, _: self.values[int(call)]
        )


@pytest.fixture
def modal(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # also restores the working directory, which `work` changes
    return Modal(tmp_path)


def results(modal, value):
    files = {name: (modal.volume / value["folder"] / name).read_text() for name in value["files"]}
    assert {name: sha256(modal.volume / value["folder"] / name) for name in files} == value["files"]
    return files


@pytest.mark.parametrize("trouble", ["connection", "gpu", "preempted"])
def test_transient_errors_are_retried_and_the_work_is_resumed(modal, job, trouble):
    value = modal.conduct(modal.request(replace(job, at=3, trouble=trouble)))
    files = results(modal, value)
    assert files["lines"] == "line\n" * 4
    assert set(files) == {"lines", "folder/result", "runtime.json"}
    assert modal.containers == 3  # conduct's and two attempts


def test_a_cuda_error_that_recurs_at_the_same_point_ends_the_job_after_two_attempts(modal, job):
    request = modal.request(replace(job, at=3, trouble="gpu", times=3))
    value = modal.conduct(request)
    assert re.fullmatch(r"modal: two attempts ended at the same point with 'CUDA error: an illegal.*", value["error"])
    assert modal.containers == 3  # conduct's and two attempts
    assert "files" not in modal.conduct(request)  # when the user runs it again: one attempt more, which fails, too
    assert modal.containers == 5
    assert results(modal, modal.conduct(request))["lines"] == "line\n" * 4


def test_a_cuda_error_after_more_progress_is_retried(modal, job):
    """An earlier attempt ended with a CUDA error after step 1, and this one does after step 2."""
    attempts = modal.volume / "jobs" / "steps-1" / "1" / "0" / "attempts"
    attempts.mkdir(parents=True)
    note = {"started": 0, "seen": 0.5, "ended": True, "done": 1, "cuda_error": True}
    (attempts / "0.json").write_text(json.dumps(note))
    value = modal.conduct(modal.request(replace(job, at=3, trouble="gpu")))
    assert results(modal, value)["lines"] == "line\n" * 4


@pytest.mark.parametrize(
    ("trouble", "kind", "message"),
    [
        ("user", "error", "params.yaml: key: is wrong"),
        (
            "memory",
            "error",
            "params.yaml: modal.gpu: L4 has too little memory for this job; choose a larger GPU, such as L40S",
        ),
        ("bug", "traceback", "ValueError: a bug"),
    ],
)
def test_permanent_errors_are_reported_once_and_the_next_run_resumes(modal, job, trouble, kind, message):
    request = modal.request(replace(job, at=3, trouble=trouble))
    value = modal.conduct(request)
    assert message in value[kind]
    assert value["dollars"] > 0
    assert modal.containers == 2
    assert results(modal, modal.conduct(request))["lines"] == "line\n" * 4


def test_no_larger_gpu_is_named_if_there_is_none(modal, job):
    value = modal.conduct(modal.request(replace(job, at=3, trouble="memory"), gpu="B200", larger_gpu=None))
    assert value["error"] == (
        "params.yaml: modal.gpu: B200 has too little memory for this job; lower image.max_tokens or evaluation.batch_size"
    )


def test_every_attempt_counts_towards_the_cost(modal, job):
    request = modal.request(replace(job, at=3, trouble="preempted"))
    value = modal.conduct(request)
    notes = [json.loads(file.read_text()) for file in modal.volume.glob("jobs/*/1/0/attempts/*.json")]
    seconds = sum(note["seen"] - note["started"] for note in notes)
    assert len(notes) == 2
    assert value["gpu_seconds"] == pytest.approx(seconds, abs=0.1)
    assert value["dollars"] == pytest.approx(0.5 * seconds, abs=0.01)
    written = json.loads(results(modal, value)["runtime.json"])
    assert {name: written[name] for name in ("gpu", "gpu_seconds", "dollars_per_second", "dollars")} == {
        "gpu": "L4",
        "gpu_seconds": value["gpu_seconds"],
        "dollars_per_second": 0.5,
        "dollars": value["dollars"],
    }


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ({"max_dollars": 0.001}, r"modal\.max_dollars: the job has cost \$.*more than 0.001; .*dvc repro"),
        ({"seconds": 0.001}, r"modal\.timeout: the job has run for its .* hours; .*dvc repro"),
    ],
)
def test_a_job_stops_at_its_limit_and_resumes_with_a_larger_one(modal, job, limit, message):
    value = modal.conduct(modal.request(job, **limit))
    assert re.search(message, value["error"])
    kept = modal.volume / "jobs" / "steps-1" / "1" / "0" / "lines"
    assert kept.read_text() == "line\n"
    assert results(modal, modal.conduct(modal.request(job)))["lines"] == "line\n" * 4


def test_finished_work_of_a_lost_caller_is_not_repeated(modal, job):
    first = modal.conduct(modal.request(job))
    again = modal.conduct(modal.request(job))
    assert again["files"]["lines"] == first["files"]["lines"]
    assert len(modal.values) == 1


def test_a_container_that_is_killed_repeatedly_is_not_retried_forever(modal, job):
    attempts = modal.volume / "jobs" / "steps-1" / "1" / "0" / "attempts"
    attempts.mkdir(parents=True)
    for n in range(3):
        note = {"started": n, "seen": n + 0.5, "ended": False, "done": 0}
        (attempts / f"{n}.json").write_text(json.dumps(note))
    assert "killed 3 times at the same point" in modal.conduct(modal.request(job))["error"]
    assert "files" in modal.conduct(modal.request(job))  # when the user runs it again


def test_weights_are_copied_from_the_volumes_cache_as_files(modal, job):
    cache = modal.volume / worker.HUB_CACHE / "models--org--m"
    for commit in ("abc", "def"):
        (cache / "blobs").mkdir(parents=True, exist_ok=True)
        (cache / "snapshots" / commit).mkdir(parents=True)
        (cache / "blobs" / commit).write_text(f"weights of {commit}")
        (cache / "snapshots" / commit / "model.safetensors").symlink_to(f"../../blobs/{commit}")
    hub_job = replace(job, model=job.model.model_copy(update={"id": "org/m", "revision": "abc"}))
    disk = modal.disk()
    worker.copy_weights(modal.request(hub_job, from_hub=True), modal.volume, disk)
    (file,) = [path for path in disk.rglob("*") if not path.is_dir()]
    assert file.relative_to(disk) == worker.HUB_CACHE / "models--org--m" / "snapshots" / "abc" / "model.safetensors"
    assert not file.is_symlink()
    assert file.read_text() == "weights of abc"


def test_every_scalar_is_recorded_and_sent_once(modal, job):
    value = modal.conduct(modal.request(replace(job, at=3, trouble="preempted")))
    record = read_events((modal.volume / value["folder"] / "events.jsonl").read_bytes())
    for entries in (record, modal.sent):
        scalars = [event_of(entry) for entry in entries if entry["type"] == "Scalars"]
        assert scalars == [Scalars(step, {"loss": float(step)}) for step in range(1, 5)]
        numbers = [(entry["attempt"], entry["number"]) for entry in entries]
        assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("others", [0, 6])
def test_the_last_progress_of_every_count_is_sent(modal, job, others):
    """Progress is limited to one event per second, and a container's part of a count does not reach the total."""
    modal.conduct(modal.request(replace(job, others=others)))
    counts = [event for event in map(event_of, modal.sent) if isinstance(event, Progress)]
    ends = {event.unit: event for event in counts}
    assert ends == {"it": Progress(4, 4 + others), "line checked": Progress(2, 2 + others, "line checked")}
    assert len(counts) < 7
    units = [event.unit for event in counts]
    assert units == sorted(units)


def test_a_job_runs_on_if_its_events_cannot_be_sent(modal, job, monkeypatch):
    def full(entries):
        raise RuntimeError("the queue is full")

    monkeypatch.setattr(modal, "sent", type("Full", (), {"extend": staticmethod(full)}))
    assert "files" in modal.conduct(modal.request(job))


def test_an_incomplete_last_line_of_a_record_is_ignored():
    whole = json.dumps({"shard": 0, "attempt": 0, "number": 0, "type": "Log", "text": "a"}).encode()
    (entry,) = read_events(whole + b'\n{"shard": 0, "att')
    assert event_of(entry) == Log("a")


def test_a_request_reproduces_its_job(task, tiny, image_params, finetune_params):
    evaluation = Evaluation(
        task,
        tiny,
        image_params,
        8,
        "data/test.parquet",
        engine="posterior",
        validation="data/v.parquet",
        calibrate="bias",
    )
    training = FineTuning(task, tiny, image_params, finetune_params, 5, "data/train.parquet", "data/validation.parquet")
    for job in (evaluation, training):
        request = Modal.request(None, job)
        assert Request.model_validate_json(request.model_dump_json()).rebuilt() == job


def test_merging_two_shards_equals_a_run_without_shards(task, tiny, image_params, make_split, tmp_path):
    data, validation = make_split("test", 22), make_split("train", 6)
    job = Evaluation(
        *(task, tiny, image_params, 4, data, 8),
        engine="posterior",
        outlines_samples=6,
        validation=validation,
        calibrate="bias",
        prior="batch",
        prior_samples=5,
        train=validation,
    )  # also with raw answers
    whole, merged = tmp_path / "whole", tmp_path / "merged"
    parts = [tmp_path / "part0", tmp_path / "part1"]
    for folder in (whole, merged, *parts):
        folder.mkdir()
    job.run(whole, lambda event: None)
    done = []
    for i, part in enumerate(parts):
        events = []
        job.answer(part, events.append, (i, 2))
        done.append(max(e.done for e in events if isinstance(e, Progress) and e.unit == "structured answer"))
        assert {e.total for e in events if isinstance(e, Progress) and e.unit == "structured answer"} == {22}
    assert done == [12, 10]  # six batches of four at most
    job.merge(parts, merged)
    for name in set(job.RESULTS) - {"runtime.json"}:
        assert (merged / name).read_bytes() == (whole / name).read_bytes()


def test_progress_over_several_units_only_grows(tmp_path):
    """A second pass over the same samples must not look like an attempt that gets nowhere."""
    path = tmp_path / "events.jsonl"
    log, done = EventLog(path, 0, 0, lambda entries: None), []
    for unit in ("raw answer", "structured answer"):
        for count in (0, 300, 600):
            log(Progress(count, 600, unit))
            done.append(log.done)
    log.close()
    assert done == [0, 300, 600, 600, 900, 1200]
    again = EventLog(path, 0, 1, lambda entries: None)
    assert again.done == 1200  # a later attempt knows it
    again.close()
