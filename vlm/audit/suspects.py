"""The list of suspicious samples, and how it is ranked and written."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from vlm.config.decisions import Decisions

# The kinds, as messages name one and several of them. A picture that shows nothing has no other problem worth listing.
KINDS = {
    "label_error": ("label error", "label errors"),
    "near_duplicate": ("near duplicate", "near duplicates"),
    "blank": ("blank picture", "blank pictures"),
    "blurred": ("blurred picture", "blurred pictures"),
    "dark": ("dark picture", "dark pictures"),
    "odd_size": ("picture of an odd size", "pictures of an odd size"),
}
COLUMNS = ["rank", "id", "split", "kind", "score", "label", "suggestion", "other", "reason", "decided"]


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
    `other` is the SPLIT/ID of the picture that this one is a copy of (near_duplicate). `decided` says what somebody has
    decided about it; such a suspect needs no further look, so it is ranked last and not counted.
    """

    sample: Sample
    kind: str
    score: float
    reason: str
    suggestion: str = ""
    other: str = ""
    decided: str = ""


def ranked(found: Iterable[Suspect], decisions: Decisions) -> list[Suspect]:
    """The suspects, the most suspicious first and the decided ones last; of a blank picture nothing else is listed."""
    found = [replace(suspect, decided=_decided(suspect, decisions)) for suspect in found]
    blank = {suspect.sample for suspect in found if suspect.kind == "blank"}
    kept = [suspect for suspect in found if suspect.kind == "blank" or suspect.sample not in blank]
    kinds = list(KINDS)
    kept.sort(key=lambda s: (-round(s.score, 4), kinds.index(s.kind), s.sample.split, s.sample.id, s.other))
    return sorted(kept, key=lambda suspect: suspect.decided != "")


def _decided(suspect: Suspect, decisions: Decisions) -> str:
    """The decision that settles a suspicion, with its reason; empty if there is none.

    A new label settles only whether the label is right: a relabelled picture can still be a copy, or show nothing.
    """
    id_ = suspect.sample.id
    if id_ in decisions.exclude:  # the splits still have it, because `prepare` has not run since
        return f"excluded: {decisions.exclude[id_]}"
    if id_ in decisions.keep:
        return f"kept: {decisions.keep[id_]}"
    if id_ in decisions.relabel and suspect.kind == "label_error":
        return f"relabelled to {decisions.relabel[id_].to}: {decisions.relabel[id_].reason}"
    return ""


def write(path: Path, suspects: Iterable[Suspect]) -> None:
    """Writes suspects.csv, all of it or nothing; `suspects` are ranked. Equal suspects give equal files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for rank, suspect in enumerate(suspects, 1):
            sample = suspect.sample
            score = f"{suspect.score:.4f}"
            row = [rank, sample.id, sample.split, suspect.kind, score, sample.label]
            writer.writerow([*row, suspect.suggestion, suspect.other, suspect.reason, suspect.decided])
    temporary.replace(path)
