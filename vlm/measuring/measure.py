"""One table of predictions -> metrics/<name>.json and plots/<name>/."""

from pathlib import Path

from vlm.config.task import Task
from vlm.data import json_files, predictions
from vlm.measuring import metrics, sheets, tables


def measure(name: str, task: Task, data: str) -> dict[str, float | int]:
    """Measures predictions/<name>.parquet, whose samples are the split `data`. Returns all metrics.

    Writes metrics/<name>.json (see HEADLINES in metrics.py), and plots/<name>/ with details.json, which has all
    metrics, the tables that `dvc plots` draws, and the contact sheet mistakes.png.
    """
    answers = predictions.read(name)
    found = json_files.read(f"predictions/{name}.json")  # what the evaluation found besides its answers
    values = metrics.of(answers, task, found.get("temperature"))
    plots = Path("plots", name)
    tables.write(plots, answers, task.labels)
    sheets.mistakes(plots / "mistakes.png", answers, task.labels, data)
    json_files.write(plots / "details.json", values | found)
    headlines = {key: values[key] for key in metrics.HEADLINES if key in values}
    json_files.write(f"metrics/{name}.json", headlines)
    return values
