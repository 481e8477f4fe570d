"""A job as it travels to Modal."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, TypeAdapter

if TYPE_CHECKING:
    from vlm.compute import Job


class Request(BaseModel):
    """A job and how to run it, as it travels: plain JSON."""

    key: str
    kind: str  # "vlm.evaluation.Evaluation"
    job: str  # JSON
    inputs: dict[str, str]  # path, as the job knows it -> folder of the volume that holds it
    from_hub: bool  # whether the model's weights have to be downloaded
    gpu: str  # "L4", "H100:4"
    dollars_per_second: float  # of all the GPUs of one container
    containers: int
    max_dollars: float | None
    seconds: float  # that the job may take
    region: str | None

    @classmethod
    def of(cls, job: "Job", **values: Any) -> "Request":
        kind = f"{type(job).__module__}.{type(job).__qualname__}"
        # What a task's file does not have must stay unset: a task knows the difference.
        text = TypeAdapter(type(job)).dump_json(job, exclude_unset=True, by_alias=True)
        return cls(kind=kind, job=text.decode(), **values)

    def rebuilt(self) -> "Job":
        """The job that `of` was given."""
        module, _, name = self.kind.rpartition(".")
        return TypeAdapter(getattr(importlib.import_module(module), name)).validate_json(self.job)

    def gpus(self) -> int:
        return int(self.gpu.partition(":")[2] or 1)

    def folder(self) -> Path:
        """Of the job's work, on the volume. How it is cut is part of it: work cut otherwise does not fit."""
        return Path("jobs", self.key, str(self.containers))
