"""Modal's GPUs, what a container with them reserves, and what it costs: configs/gpus.yaml."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from vlm.config.errors import InputError

if TYPE_CHECKING:
    from vlm.config.models import ModelConfig
    from vlm.config.params import ModalParams

FILE = Path("configs/gpus.yaml")


@dataclass(frozen=True)
class Container:
    """What a job asks Modal for, and the list price of all of it."""

    gpu: str  # "L4", "H100:4"
    count: int  # of GPUs
    cpu_cores: int  # physical ones
    memory_gib: int
    dollars_per_second: float  # GPUs, cores and memory


def container_for(model: "ModelConfig", modal: "ModalParams", several: bool) -> Container:
    """The container for a job. Without `several`, "H100:4" is reduced to one H100.

    Raises InputError for an unknown GPU, for one that cannot run the model's dtype, and for a gap in configs/gpus.yaml.
    """
    gpu = gpu_of(model, modal, several)
    table = _read()
    name, _, count = gpu.partition(":")
    if model.dtype == "bfloat16" and name in _value(table, "without_bfloat16"):
        raise InputError(
            f"{_key(model, modal)}: {name} has no bfloat16, the dtype of {model.name}; choose another GPU, or "
            f"`options.dtype: float16` in configs/models/{model.name}.yaml"
        )
    gpus = int(count or 1)
    cores = gpus * _value(table, "cpu_cores", name)
    memory = gpus * _value(table, "container", "memory_gib_per_gpu")
    memory += cores * _value(table, "container", "memory_gib_per_core")
    dollars = gpus * _value(table, "dollars_per_second", name)
    dollars += cores * _value(table, "container", "dollars_per_core_second")
    dollars += memory * _value(table, "container", "dollars_per_gib_second")
    return Container(gpu, gpus, cores, memory, dollars)


def gpu_of(model: "ModelConfig", modal: "ModalParams", several: bool) -> str:
    """The GPU for a job. Without `several`, "H100:4" is reduced to one H100. Raises InputError for an unknown GPU."""
    gpu = modal.gpu or model.gpu
    known = _value(_read(), "dollars_per_second")
    name, _, count = gpu.partition(":")
    if name not in known or not re.fullmatch("[1-8]?", count) or gpu.endswith(":"):
        raise InputError(
            f"{_key(model, modal)}: {gpu!r} should be one of {', '.join(known)} (see {FILE}), with :2 to :8 for several"
        )
    return gpu if several else name


def memory_gb(gpu: str) -> float:
    """The memory of one GPU, in GB: the same for "H100" and "H100:4". Raises InputError if the file lacks the GPU."""
    return _value(_read(), "memory_gb", gpu.partition(":")[0])


def larger(gpu: str) -> str | None:
    """The cheapest GPU with more memory, "A100-80GB:2" for "L40S:2"; None if there is none."""
    dollars = _value(_read(), "dollars_per_second")
    name, colon, count = gpu.partition(":")
    names = [other for other in dollars if memory_gb(other) > memory_gb(name)]
    return min(names, key=dollars.__getitem__) + colon + count if names else None


def _key(model: "ModelConfig", modal: "ModalParams") -> str:
    """The file and key that choose the GPU."""
    return "params.yaml: modal.gpu" if modal.gpu else f"configs/models/{model.name}.yaml: gpu"


def _read() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


def _value(table: dict[str, Any], *keys: str) -> Any:
    value: Any = table
    for key in keys:
        if key not in value:
            raise InputError(f"{FILE}: {'.'.join(keys)}: is missing; add it")
        value = value[key]
    return value
