"""Writes and reads flat JSON files, the form of metrics that DVC compares."""

import json
import math
from collections.abc import Mapping
from pathlib import Path


def write(path: str | Path, values: Mapping[str, float | int | str]) -> None:
    """Writes flat JSON, all of it or nothing. Floats get six significant digits, so files are readable and stable.

    Raises ValueError for a nested value, NaN or infinity.
    """
    path, rounded = Path(path), {}
    for name, value in values.items():
        if not isinstance(value, float | int | str) or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f"{path}: {name}: {value!r} is not a finite number or text")
        rounded[name] = float(f"{value:.6g}") if isinstance(value, float) else value
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(rounded, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def read(path: str | Path) -> dict[str, float | int | str]:
    return json.loads(Path(path).read_text(encoding="utf-8"))
