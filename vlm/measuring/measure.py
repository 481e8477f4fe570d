"""Measures one table of predictions and writes metrics/<name>.json and plots/<name>/."""

from pathlib import Path
from typing import Any

from vlm.config.task import Task
from vlm.data import json_files, predictions
from vlm.measuring import metrics, sheets, tables, thresholds
from vlm.measuring.answers import Predictions

_CORRECTABLE = ("structured_eval", "final_eval")  # have a setting `prior` in params.yaml


def measure(name: str, task: Task) -> dict[str, Any]:
    """Measures predictions/<name>/ and returns what details.json says: all metrics, with `thresholds` if
    validation was answered, too, and what test.json says.

    Writes plots/<name>/: details.json with all metrics, the CSV files that `dvc plots` draws, and mistakes.png, a
    contact sheet of wrong answers. Writes only the accuracy to metrics/<name>.json and, for answers whose label prior
    can be corrected, plain_accuracy, that of the model's own probabilities: `dvc exp show` puts the file's name before
    each metric that several files have, and with more of them its table would not fit on a screen.

    A probe of a model without vision features has no answers: the metrics are empty, and `unavailable` says why.
    """
    plots = Path("plots", name)
    answers = Predictions.load(name)
    found = json_files.read(predictions.notes_path(name))  # what the evaluation reports besides its answers
    if "unavailable" in found:
        json_files.write(plots / "details.json", found)
        json_files.write(f"metrics/{name}.json", {})
        return found
    values: dict[str, Any] = metrics.of(answers, task, found)
    if answers.has_probabilities and predictions.path(name, "validation").exists():
        validation = Predictions.load(name, split="validation")
        if validation.has_probabilities:
            values["thresholds"] = thresholds.chosen(validation, answers)
    tables.write(plots, answers)
    sheets.mistakes(plots / "mistakes.png", answers)
    values |= found
    json_files.write(plots / "details.json", values)
    compared = {"accuracy": values["accuracy"]}
    if name in _CORRECTABLE and answers.has_probabilities:
        compared["plain_accuracy"] = values.get("plain_accuracy", values["accuracy"])
    json_files.write(f"metrics/{name}.json", compared)
    return values
