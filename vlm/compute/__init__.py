"""Where a job runs, and the way of its results to the stage that asked for them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Literal, Protocol

from vlm.compute import local
from vlm.events import Emit
from vlm.params import Compute, ModalParams, ModelConfig


class Job(Protocol):
    """Frozen plain values plus input files; `run` writes result files, and can go on where a killed run stopped."""

    RESULTS: ClassVar[tuple[str, ...]]  # the files and folders among them that a stage takes
    # Whether processes, one a GPU, do it together; if not, containers can share its batches (`answer`, `merge`).
    DATA_PARALLEL: ClassVar[bool]
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
    """Runs `job` and gives the folder of its result files, which is removed when the block ends without an error.

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


def place(model: ModelConfig, compute: Compute) -> Literal["local", "modal"]:
    """Where `compute` says that a model runs: auto is here if it runs on a CPU or there is an NVIDIA GPU."""
    if compute == "auto":
        return "local" if model.runs_on_cpu or local.gpus() else "modal"
    return compute
