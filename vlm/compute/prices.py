"""What a GPU on Modal costs: configs/gpus.yaml."""

import re
from pathlib import Path

from vlm.errors import InputError
from vlm.params import ModalParams, ModelConfig, read_yaml

FILE = Path("configs/gpus.yaml")


def gpu_of(model: ModelConfig, modal: ModalParams, several: bool) -> tuple[str, float]:
    """The GPU that a job gets, and its dollars per second; "H100:4" is one H100 for a job that cannot use `several`.

    Raises InputError for one that Modal does not have.
    """
    gpu = modal.gpu or model.gpu
    price = dollars_per_second(gpu, "params.yaml: modal.gpu" if modal.gpu else f"configs/models/{model.name}.yaml: gpu")
    name, _, count = gpu.partition(":")
    return (gpu, price) if several else (name, price / int(count or 1))


def dollars_per_second(gpu: str, key: str) -> float:
    """Of "L4", or of all four of "H100:4". Raises InputError, which names `key`, for what Modal does not have."""
    prices = read_yaml(FILE)["dollars_per_second"]
    name, _, count = gpu.partition(":")
    if name not in prices or not re.fullmatch("[1-8]?", count) or gpu.endswith(":"):
        known = ", ".join(prices)
        raise InputError(f"{key}: {gpu!r} should be one of {known} (see {FILE}), with :2 to :8 for several")
    return prices[name] * int(count or 1)
