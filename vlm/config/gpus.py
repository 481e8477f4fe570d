"""Modal's GPUs and their prices, from configs/gpus.yaml."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from vlm.config.errors import InputError

if TYPE_CHECKING:
    from vlm.config.models import ModelConfig
    from vlm.config.params import ModalParams

FILE = Path("configs/gpus.yaml")


def gpu_of(model: "ModelConfig", modal: "ModalParams", several: bool) -> tuple[str, float]:
    """The GPU for a job, and its price in dollars per second. Without `several`, "H100:4" is reduced to one H100.

    Raises InputError for an unknown GPU.
    """
    gpu = modal.gpu or model.gpu
    price = dollars_per_second(gpu, "params.yaml: modal.gpu" if modal.gpu else f"configs/models/{model.name}.yaml: gpu")
    name, _, count = gpu.partition(":")
    return (gpu, price) if several else (name, price / int(count or 1))


def dollars_per_second(gpu: str, key: str) -> float:
    """The price of a GPU ("L4") or of several ("H100:4"). Raises InputError, naming `key`, for an unknown GPU."""
    prices = yaml.safe_load(FILE.read_text(encoding="utf-8"))["dollars_per_second"]
    name, _, count = gpu.partition(":")
    if name not in prices or not re.fullmatch("[1-8]?", count) or gpu.endswith(":"):
        known = ", ".join(prices)
        raise InputError(f"{key}: {gpu!r} should be one of {known} (see {FILE}), with :2 to :8 for several")
    return prices[name] * int(count or 1)
