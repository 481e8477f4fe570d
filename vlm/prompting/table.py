"""The search's tables: candidates.csv, finalists.parquet and tested.parquet.

candidates.csv has one row a candidate: its number, the `rounds` and `samples` that it was asked about, the mean
`log_loss` (nats) and the `accuracy` on these samples, the `outcome`, and its text, with words and descriptions as JSON.
finalists.parquet has one row for each sample and each candidate that was asked about all of them: candidate, id, label,
predicted, log_loss, and `fresh`: whether only the last round asked about the sample.
tested.parquet has the answers to test of the winner and of the present prompt: candidate, id, label, predicted.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vlm.config.prompts import Wording
from vlm.config.task import Task
from vlm.prompting.halving import PRESENT

if TYPE_CHECKING:
    import numpy as np

# The stage's folder with these tables, search.json (see PromptSearch) and task.yaml, a copy of the new task's file. If
# the present prompt won, it has neither tested.parquet nor task.yaml.
FOLDER = "predictions/prompt_search"

_MEASURED = ["candidate", "rounds", "samples", "log_loss", "accuracy", "outcome"]


@dataclass
class Result:
    """What is known of a candidate after its last round; arrays are (samples), in the order of `rows`."""

    rounds: int
    rows: list[int]
    predicted: "np.ndarray"  # indices of labels
    truth: "np.ndarray"
    losses: "np.ndarray"
    outcome: str = ""  # why it was dropped


def write_candidates(
    path: Path, wordings: Sequence[Wording], results: Mapping[int, Result], winner: int | None
) -> None:
    """Writes candidates.csv, those first that came furthest, by log loss; no rows if there are no wordings."""
    rows = []
    for number, wording in enumerate(wordings):
        result = results[number]
        outcome = [result.outcome] if result.outcome else []
        outcome += ["the task's present prompt"] if number == PRESENT else []
        outcome += ["best"] if number == winner else []
        values = [result.rounds, len(result.rows), f"{result.losses.mean():.6g}"]
        values += [f"{(result.predicted == result.truth).mean():.6g}", "; ".join(outcome) or "asked to the end"]
        rows.append((-result.rounds, float(result.losses.mean()), [number, *values, *_texts(wording)]))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*_MEASURED, *Wording.model_fields])
        writer.writerows(row for _, _, row in sorted(rows))


def _texts(wording: Wording) -> list[str]:
    values = wording.model_dump().values()
    return [json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value or "" for value in values]


def write_finalists(
    path: Path,
    task: Task,
    ids: Sequence[str],
    labels: Sequence[str],
    fresh: Sequence[int],
    results: Mapping[int, Result],
    finalists: Sequence[int],
) -> None:
    """Writes finalists.parquet; `ids` and `labels` are the split's, `fresh` its rows that only the last round used."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"candidate": pa.int64(), "id": pa.string(), "label": pa.string(), "predicted": pa.string()}
    schema = pa.schema(columns | {"log_loss": pa.float64(), "fresh": pa.bool_()})
    last, rows = set(fresh), []
    for candidate in finalists:
        result = results[candidate]
        for row, answer, loss in zip(result.rows, result.predicted, result.losses, strict=True):
            values = (candidate, ids[row], labels[row], task.labels[int(answer)], float(loss), row in last)
            rows.append(dict(zip(schema.names, values, strict=True)))
    pq.write_table(pa.Table.from_pylist(rows, schema), path)


def write_tested(path: Path, answers: Mapping[int, Path]) -> None:
    """Writes tested.parquet from the predictions of each candidate (see vlm/data/predictions.py)."""
    import pandas as pd

    columns = ["id", "label", "predicted"]
    frames = [pd.read_parquet(file, columns=columns).assign(candidate=number) for number, file in answers.items()]
    pd.concat(frames)[["candidate", *columns]].to_parquet(path, index=False)
