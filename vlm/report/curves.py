"""Curves and tables beside the samples: training, thresholds for a target accuracy, robustness."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm.data import predictions
from vlm.measuring.answers import Predictions
from vlm.measuring.thresholds import chosen

_SMOOTHED = 200  # points of the training loss at most: more than the chart has pixels for


def training() -> dict[str, Any] | None:
    """The learning curves of the fine-tune: loss on train and validation by step, accuracy with its interval.

    None if there was none.
    """
    folder = Path("plots", "finetune")
    passes = _rows(folder / "checkpoints.csv")
    if not passes:
        return None
    steps = _rows(folder / "plots" / "metrics" / "train" / "loss.tsv")
    return {
        "train_loss": _thinned([(float(row["step"]), float(row["loss"])) for row in steps]),
        "eval_loss": [(float(row["step"]), float(row["eval_loss"])) for row in passes],
        "accuracy": [tuple(float(row[key]) for key in ("step", "accuracy", "low", "high")) for row in passes],
        "best": next((float(row["step"]) for row in passes if row["best"] in ("1", "True")), None),
    }


def thresholds(found: Mapping[str, Predictions]) -> dict[str, list[dict[str, float | None]]]:
    """The thresholds on confidence by name of the predictions, for those that have answers to validation as well.

    Computed from the predictions, because plots/<name>/details.json can be older than they are.
    """
    tables = {}
    for name in ("structured_eval", "final_eval"):
        if name in found and predictions.path(name, "validation").exists():
            validation = Predictions.load(name, split="validation")
            if validation.has_probabilities and found[name].has_probabilities:
                tables[name] = chosen(validation, found[name])
    return tables


def robustness() -> list[dict[str, Any]]:
    """Accuracy with its interval by model, corruption and severity (0: the original pictures); [] if not measured."""
    numbers = ("severity", "accuracy", "low", "high")
    return [
        {"model": row["model"], "corruption": row["corruption"]} | {key: float(row[key]) for key in numbers}
        for row in _rows(Path("plots", "robustness", "accuracy.csv"))
    ]


def _rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV or TSV file; [] if there is none."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means of equally many neighbouring points, _SMOOTHED of them at most."""
    width = -(-len(points) // _SMOOTHED) or 1
    groups = [points[start : start + width] for start in range(0, len(points), width)]
    return [(group[-1][0], round(sum(y for _, y in group) / len(group), 5)) for group in groups]
