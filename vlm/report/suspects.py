"""What the audit finds suspicious, as the page shows it."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm.audit.suspects import COLUMNS
from vlm.config.errors import InputError
from vlm.data import dataset

FILE = Path("plots", "audit", "suspects.csv")
FIRST = 1000  # rows in the page, besides all rows of the test split, which the gallery marks; the file has all


@dataclass(frozen=True)
class Suspects:
    rows: list[dict[str, Any]]  # the columns of the file, and `row`, `other_split` and `other_row`
    total: int  # rows in the file
    decided: int  # of these, the rows about which configs/decisions or the task's file has decided

    def pictures(self) -> Iterable[tuple[str, int]]:
        """Split and row number of all pictures that are suspicious or near duplicates of a suspicious one."""
        for row in self.rows:
            yield row["split"], row["row"]
            if row["other_split"]:
                yield row["other_split"], row["other_row"]


def load() -> Suspects | None:
    """The most suspicious rows of plots/audit/suspects.csv, and all of the test split; None if the audit has not run.

    Raises InputError if the file lacks a column, or names a sample that is not in data/.
    """
    if not FILE.exists():
        return None
    with FILE.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
        if missing:
            raise InputError(f"{FILE}: has no column {missing[0]!r}; `dvc repro -f audit` writes it again")
        listed = list(reader)
    places: dict[str, dict[str, int]] = {}

    def row_of(split: str, sample: str) -> int:
        if split not in places:
            ids, _ = dataset.ids_and_labels(f"data/{split}.parquet")
            places[split] = {id_: number for number, id_ in enumerate(ids)}
        if sample not in places[split]:
            raise InputError(f"{FILE}: {sample!r} is not in data/{split}.parquet; `dvc repro audit` looks again")
        return places[split][sample]

    rows = []
    for row in [*listed[:FIRST], *(row for row in listed[FIRST:] if row["split"] == "test")]:
        other_split, _, other = row["other"].partition("/")
        rows.append(
            {column: row[column] for column in COLUMNS}
            | {"rank": int(row["rank"]), "score": float(row["score"]), "row": row_of(row["split"], row["id"])}
            | {"other_split": other_split, "other_row": row_of(other_split, other) if other else -1}
        )
    return Suspects(rows, len(listed), sum(row["decided"] != "" for row in listed))
