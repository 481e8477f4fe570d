"""Where a job runs, and the way of its results to the stage that asked for them."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Protocol

from vlm.compute import local
from vlm.errors import InputError
from vlm.events import Emit
from vlm.params import ModelConfig


class Job(Protocol):
    """Frozen plain values plus input files; `run` writes result files, and can go on where a killed run stopped."""

    model: ModelConfig

    @property
    def inputs(self) -> list[str]: ...

    def run(self, directory: Path, emit: Emit) -> None: ...


@contextmanager
def run(
    job: Job, compute: Literal["auto", "local"], live: str | None = None, track_with: Sequence[str] = ("dvclive",)
) -> Iterator[Path]:
    """Runs `job` and gives the folder of its result files, which is removed when the block ends without an error.

    Scalars that the job reports go to the trackers of `track_with`, DVCLive's to the folder `live`. What a killed run
    has finished is not repeated.
    Raises InputError where there is nothing that the model can run on.
    """
    if compute == "auto" and not (job.model.runs_on_cpu or has_nvidia_gpu()):
        raise InputError(
            f"params.yaml: compute: auto found no NVIDIA GPU here, which the model {job.model.name} wants; "
            "`compute: local` runs it on this CPU all the same"
        )
    with local.run(job, live, track_with) as directory:
        yield directory


def has_nvidia_gpu() -> bool:
    """Whether the driver of this machine knows a GPU; torch, which is slow to import, is not asked."""
    import subprocess

    if shutil.which("nvidia-smi") is None:
        return False
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
    return listed.returncode == 0 and "GPU" in listed.stdout
