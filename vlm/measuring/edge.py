"""Measures what exporting a model changes: the files' answers beside the answers of the model that was exported."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.config.params import load_params
from vlm.data import json_files, predictions
from vlm.evaluation.intervals import wilson
from vlm.measuring.answers import Predictions

if TYPE_CHECKING:
    import pandas as pd

NAME = "edge_eval"


def measure() -> "pd.DataFrame":
    """Compares the answers in predictions/edge_eval/, test.parquet and sweep.parquet, with those of final_eval.

    Returns a table with one row for each classifier, the exported one first: `types` (text+vision), `megabytes`,
    `samples`, `accuracy` with its 95 % Wilson interval (`low`, `high`), `changed` (samples with another label than in
    final_eval), `gained` and `lost` (those of them that only this classifier, or only final_eval, gets right),
    `largest_change` of a probability, and `mean_change`: half the sum of the absolute changes of a sample's
    probabilities (the total variation distance), on average. Both are NaN if final_eval has no probabilities.

    Writes it to plots/edge/quantization.csv, the row of the exported classifier with its `greedy_agreement` to
    plots/edge/details.json, and `changed` of that row to metrics/edge.json. If nothing was exported, the table
    and the metrics are empty and details.json says why.
    """
    import pandas as pd

    plots = Path("plots", "edge")
    notes = json_files.read(predictions.notes_path(NAME))
    rows = []
    if "unavailable" not in notes:
        final, labels = Predictions.load("final_eval"), load_params().task.labels
        rows.append(_row(final, Predictions.load(NAME), notes))
        for types, swept in predictions.read(NAME, "sweep").groupby("types", sort=False):
            of_types = {"types": types, "bytes": int(swept["bytes"].iloc[0])}
            rows.append(_row(final, Predictions(types, swept.reset_index(drop=True), labels), of_types))
    columns = ["types", "megabytes", "samples", "accuracy", "low", "high", "changed", "gained", "lost"]
    table = pd.DataFrame(rows, columns=[*columns, "largest_change", "mean_change"])
    plots.mkdir(parents=True, exist_ok=True)
    table.round(6).to_csv(plots / "quantization.csv", index=False, lineterminator="\n")
    metrics = {"changed": rows[0]["changed"]} if rows else {}
    shipped = {key: value for key, value in rows[0].items() if value == value} if rows else {}  # without NaN
    json_files.write(plots / "details.json", shipped | notes)
    json_files.write("metrics/edge.json", metrics)
    return table


def _row(final: Predictions, edge: Predictions, notes: dict[str, Any]) -> dict[str, Any]:
    right, n = int(edge.frame["right"].sum()), len(edge.frame)
    low, high = wilson(right, n)
    changes = final.changes(edge)["change"].value_counts()
    largest, mean = _changes_of_probabilities(final, edge)
    return {
        "types": notes["types"],
        "megabytes": notes["bytes"] / 1e6,
        "samples": n,
        "accuracy": right / n,
        "low": low,
        "high": high,
        "changed": int(changes.sum()),
        "gained": int(changes.get("fixed", 0)),
        "lost": int(changes.get("broken", 0)),
        "largest_change": largest,
        "mean_change": mean,
    }


def _changes_of_probabilities(final: Predictions, edge: Predictions) -> tuple[float, float]:
    """The largest change of a probability, and the mean total variation distance; NaN without probabilities."""
    import numpy as np

    if not final.has_probabilities:
        return float("nan"), float("nan")
    of_final = final.frame.set_index("id")["probabilities"].loc[edge.frame["id"]]
    change = np.abs(np.stack(of_final.to_list()) - np.stack(edge.frame["probabilities"].to_list()))
    return float(change.max()), float(change.sum(1).mean() / 2)
