"""What a GPU on Modal costs: configs/gpus.yaml."""

import re
from pathlib import Path

from vlm.errors import InputError
from vlm.params import read_yaml

FILE = Path("configs/gpus.yaml")


def dollars_per_second(gpu: str, key: str) -> float:
    """Of "L4", or of all four of "H100:4". Raises InputError, which names `key`, for what Modal does not have."""
    prices = read_yaml(FILE)["dollars_per_second"]
    name, _, count = gpu.partition(":")
    if name not in prices or not re.fullmatch("[1-8]?", count) or gpu.endswith(":"):
        known = ", ".join(prices)
        raise InputError(f"{key}: {gpu!r} should be one of {known} (see {FILE}), with :2 to :8 for several")
    return prices[name] * int(count or 1)
