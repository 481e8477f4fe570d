"""Which pictures make up a split: no copies, every label in proportion, the rest left to the seed."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vlm.sources.pictures import Inspection


@dataclass(frozen=True)
class Picture:
    """A readable picture; `index` is its place in its source."""

    index: int
    id: str
    label: str
    inspection: Inspection


@dataclass(frozen=True)
class Skipped:
    """A picture that is in no split, and why."""

    id: str
    kind: Literal["unreadable", "duplicate", "conflict"]
    reason: str


def without_copies(pictures: Sequence[Picture], elsewhere: dict[bytes, Picture]) -> tuple[list[Picture], list[Skipped]]:
    """Of equal pictures the first, and the rest as skipped.

    None of them stays if their labels differ, for nobody knows which is right, or if one is in `elsewhere` (by the
    digest of its pixels).
    """
    labels: dict[bytes, set[str]] = {}
    first: dict[bytes, Picture] = {}
    for picture in pictures:
        digest = picture.inspection.pixels_digest
        labels.setdefault(digest, set()).add(picture.label)
        first.setdefault(digest, picture)
    kept, skipped = [], []
    for picture in pictures:
        digest = picture.inspection.pixels_digest
        if len(labels[digest]) > 1:
            others = " and ".join(sorted(labels[digest] - {picture.label}))
            skipped.append(Skipped(picture.id, "conflict", f"is labelled {picture.label}, copies of it {others}"))
        elif digest in elsewhere or first[digest] is not picture:
            original = elsewhere.get(digest, first[digest])
            skipped.append(Skipped(picture.id, "duplicate", f"is a copy of {original.id}"))
        else:
            kept.append(picture)
    return kept, skipped


def quotas(counts: dict[str, int], wanted: int) -> dict[str, int]:
    """`wanted` divided among labels in proportion to their counts; fractions go to the largest remainders."""
    total = sum(counts.values())
    shares = {label: divmod(wanted * count, total) for label, count in counts.items()}
    short = wanted - sum(whole for whole, _ in shares.values())
    topped_up = set(sorted(counts, key=lambda label: -shares[label][1])[:short])
    return {label: whole + (label in topped_up) for label, (whole, _) in shares.items()}


def draw(pictures: Sequence[Picture], quota: dict[str, int], seed: int) -> list[Picture]:
    """As many of the pictures of every label as `quota` says, all together in a random order.

    Chance is a hash of seed and picture file, the same on every machine, so that another picture in the source changes
    little of what is drawn.
    """

    def chance(picture: Picture) -> bytes:
        return hashlib.sha256(f"{seed}:".encode() + picture.inspection.bytes_digest).digest()

    by_label: dict[str, list[Picture]] = {label: [] for label in quota}
    for picture in sorted(pictures, key=chance):
        by_label[picture.label].append(picture)
    chosen = [picture for label, number in quota.items() for picture in by_label[label][:number]]
    return sorted(chosen, key=chance)
