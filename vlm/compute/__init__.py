"""Runs jobs, on this machine or on Modal, and hands their results to the stages."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Literal, Protocol

from vlm.compute import local
from vlm.compute.local import run_on_cpu as run_on_cpu
from vlm.config.events import Emit
from vlm.config.models import ModelConfig
from vlm.config.params import Compute, ModalParams


class Job(Protocol):
    """A frozen dataclass of plain values and input files. `run` writes result files and can resume a killed run."""

    RESULTS: ClassVar[tuple[str, ...]]  # the result files and folders that a stage takes
    # True: runs in one process per GPU. False: its batches can be split among containers (`answer`, `merge`).
    DATA_PARALLEL: ClassVar[bool]
    PACKAGES: ClassVar[tuple[str, ...]]  # the packages of vlm whose code determines the result
    model: ModelConfig

    @property
    def inputs(self) -> list[str]: ...

    def run(self, directory: Path, emit: Emit) -> None: ...


@contextmanager
def run(
    job: Job,
    compute: Compute,
    modal: ModalParams,
    live: str | None = None,
    track_with: Sequence[str] = ("dvclive",),
) -> Iterator[Path]:
    """Runs `job` and yields the folder with its result files, which is removed when the block ends without an error.

    Scalars that the job reports go to the trackers in `track_with`; DVCLive writes to the folder `live`. Work that a
    killed run finished is not repeated. Raises InputError for errors that the user can fix, wherever the job ran.
    """
    if place(job.model, compute) == "local":
        running = local.run(job, live, track_with)
    else:
        from vlm.compute import modal as on_modal

        running = on_modal.run(job, modal, live, track_with)
    with running as directory:
        yield directory


def save(result: Path, targets: Mapping[str, str]) -> None:
    """Copies a job's results; `targets` maps the name of a file or folder in `result` to its destination."""
    for name, target in targets.items():
        source, place = result / name, Path(target)
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(source, place)
        else:
            shutil.copyfile(source, place)


def speed(runtime: str) -> str:
    """What a job's file of runtimes says in a few words: "600 samples in 9 s, 64.6/s"."""
    values = json.loads(Path(runtime).read_text(encoding="utf-8"))
    return f"{values['samples']} samples in {values['seconds']:.0f} s, {values['samples_per_second']:.3g}/s"


def place(model: ModelConfig, compute: Compute) -> Literal["local", "modal"]:
    """Where a model runs. "auto" means locally if the model runs on a CPU or this machine has an NVIDIA GPU."""
    if compute == "auto":
        return "local" if model.runs_on_cpu or local.gpus() else "modal"
    return compute
