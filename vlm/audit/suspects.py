"""The list of suspicious samples, and how it is ranked and written."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

# The kinds, as messages name one and several of them. A picture that shows nothing has no other problem worth listing.
KINDS = {
    "label_error": ("label error", "label errors"),
    "near_duplicate": ("near duplicate", "near duplicates"),
    "blank": ("blank picture", "blank pictures"),
    "blurred": ("blurred picture", "blurred pictures"),
    "dark": ("dark picture", "dark pictures"),
    "odd_size": ("picture of an odd size", "pictures of an odd size"),
}
_COLUMNS = ["rank", "id", "split", "kind", "score", "label", "suggestion", "other", "reason"]


@dataclass(frozen=True)
class Sample:
    """A row of a split, without its picture."""

    split: str
    id: str
    label: str


@dataclass(frozen=True)
class Suspect:
    """A sample that someone should look at, and why.

    `score` is from 0 to 1, the most suspicious first. `suggestion` is the label that the models give (label_error), and
    `other` is the SPLIT/ID of the picture that this one is a copy of (near_duplicate).
    """

    sample: Sample
    kind: str
    score: float
    reason: str
    suggestion: str = ""
    other: str = ""


def ranked(found: Iterable[Suspect]) -> list[Suspect]:
    """The suspects, the most suspicious first; of a blank picture nothing else is listed."""
    found = list(found)
    blank = {suspect.sample for suspect in found if suspect.kind == "blank"}
    kept = [suspect for suspect in found if suspect.kind == "blank" or suspect.sample not in blank]
    order = list(KINDS)
    return sorted(kept, key=lambda s: (-round(s.score, 4), order.index(s.kind), s.sample.split, s.sample.id, s.other))


def write(path: Path, suspects: Iterable[Suspect]) -> None:
    """Writes suspects.csv, all of it or nothing; `suspects` are ranked. Equal suspects give equal files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for rank, suspect in enumerate(suspects, 1):
            sample = suspect.sample
            score = f"{suspect.score:.4f}"
            row = [rank, sample.id, sample.split, suspect.kind, score, sample.label]
            writer.writerow([*row, suspect.suggestion, suspect.other, suspect.reason])
    temporary.replace(path)
