"""A job in the form in which it is sent to Modal."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, TypeAdapter

if TYPE_CHECKING:
    from vlm.compute import Job


class Request(BaseModel):
    """A job and the settings to run it with, as plain JSON."""

    key: str
    kind: str  # "vlm.evaluation.job.Evaluation"
    job: str  # JSON
    inputs: dict[str, str]  # path in the job -> folder on the volume with the content
    from_hub: bool  # whether the model's weights have to be downloaded
    gpu: str  # "L4", "H100:4"
    larger_gpu: str | None  # one with more memory, if there is one; configs/gpus.yaml is not in the container
    gpu_count: int  # of one container, like the next three
    cpu_cores: int  # physical ones
    memory_gib: int
    dollars_per_second: float  # GPUs, cores and memory
    containers: int
    max_dollars: float | None
    seconds: float  # time limit of the job
    region: str | None

    @classmethod
    def of(cls, job: "Job", **values: Any) -> "Request":
        kind = f"{type(job).__module__}.{type(job).__qualname__}"
        # exclude_unset: keys that a task's file lacks must stay unset, because Task distinguishes them from defaults.
        text = TypeAdapter(type(job)).dump_json(job, exclude_unset=True, by_alias=True)
        return cls(kind=kind, job=text.decode(), **values)

    def rebuilt(self) -> "Job":
        """The job that was passed to `of`."""
        module, _, name = self.kind.rpartition(".")
        return TypeAdapter(getattr(importlib.import_module(module), name)).validate_json(self.job)

    def folder(self) -> Path:
        """The job's folder on the volume. Depends on the number of containers, because shards differ with it."""
        return Path("jobs", self.key, str(self.containers))
