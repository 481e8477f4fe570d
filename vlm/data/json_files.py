"""Writes and reads small JSON files, such as the metrics that DVC compares."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write(path: str | Path, values: Mapping[str, Any]) -> None:
    """Writes JSON, all of it or nothing. Floats get six significant digits, so files are readable and stable.

    Raises ValueError for NaN, infinity and what is not JSON: a number, text, null, or a list or mapping of these.
    """
    path = Path(path)
    rounded = {name: _rounded(value, f"{path}: {name}") for name, value in values.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(rounded, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def read(path: str | Path) -> dict[str, Any]:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def _rounded(value: Any, place: str) -> Any:
    if isinstance(value, Mapping):
        return {name: _rounded(inner, f"{place}.{name}") for name, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner, f"{place}.{number}") for number, inner in enumerate(value)]
    if not isinstance(value, float | int | str | None) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{place}: {value!r} is not a finite number, text or null")
    return float(f"{value:.6g}") if isinstance(value, float) else value
