"""Where a job runs, and the way of its results to the stage that asked for them."""

import shutil
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
        return "local" if model.runs_on_cpu or has_nvidia_gpu() else "modal"
    return compute


def has_nvidia_gpu() -> bool:
    """Whether the driver of this machine knows a GPU; torch, which is slow to import, is not asked."""
    import subprocess

    if shutil.which("nvidia-smi") is None:
        return False
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
    return listed.returncode == 0 and "GPU" in listed.stdout
