"""Where a job runs, and the way of its results to the stage that asked for them."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Literal, Protocol

from vlm.compute import local
from vlm.config.events import Emit
from vlm.config.models import ModelConfig
from vlm.config.params import Compute, ModalParams


class Job(Protocol):
    """Frozen plain values plus input files; `run` writes result files, and can go on where a killed run stopped."""

    RESULTS: ClassVar[tuple[str, ...]]  # the files and folders among them that a stage takes
    # Whether processes, one a GPU, do it together; if not, containers can share its batches (`answer`, `merge`).
    DATA_PARALLEL: ClassVar[bool]
    PACKAGES: ClassVar[tuple[str, ...]]  # of vlm, whose code decides the result
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
    """Runs `job` and yields the folder of its result files, which is removed when the block ends without an error.

    Scalars that the job reports go to the trackers of `track_with`, DVCLive's to the folder `live`. What a killed run
    has finished is not repeated. Raises InputError for what the user can put right, wherever the job ran.
    """
    if place(job.model, compute) == "local":
        running = local.run(job, live, track_with)
    else:
        from vlm.compute import modal as on_modal

        running = on_modal.run(job, modal, live, track_with)
    with running as directory:
        yield directory


def save(result: Path, targets: Mapping[str, str]) -> None:
    """Copies files and folders of a job's results to where they belong, by name in `result`."""
    for name, target in targets.items():
        source, place = result / name, Path(target)
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(source, place)
        else:
            shutil.copyfile(source, place)


def place(model: ModelConfig, compute: Compute) -> Literal["local", "modal"]:
    """Where `compute` says that a model runs: auto is here if it runs on a CPU or there is an NVIDIA GPU."""
    if compute == "auto":
        return "local" if model.runs_on_cpu or local.gpus() else "modal"
    return compute
