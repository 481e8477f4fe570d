"""Measures one table of predictions and writes metrics/<name>.json and plots/<name>/."""

from pathlib import Path

from vlm.config.task import Task
from vlm.data import json_files, predictions
from vlm.measuring import metrics, sheets, tables


def measure(name: str, task: Task, data: str) -> dict[str, float | int]:
    """Measures predictions/<name>.parquet and returns all metrics. `data` is the path of the split that was predicted.

    Writes plots/<name>/: details.json with all metrics, the CSV files that `dvc plots` draws, and mistakes.png, a
    contact sheet of wrong answers. Writes only the accuracy to metrics/<name>.json: `dvc exp show` puts the file's name
    before each metric that several files have, and with more of them its table would not fit on a screen.
    """
    answers = predictions.read(name)
    found = json_files.read(f"predictions/{name}.json")  # what the evaluation reports besides its answers
    values = metrics.of(answers, task, found.get("temperature"))
    plots = Path("plots", name)
    tables.write(plots, answers, task.labels)
    sheets.mistakes(plots / "mistakes.png", answers, task.labels, data)
    json_files.write(plots / "details.json", values | found)
    json_files.write(f"metrics/{name}.json", {"accuracy": values["accuracy"]})
    return values
