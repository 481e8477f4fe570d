"""Which pictures make up a split: no copies, every label in proportion, the rest left to the seed."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vlm.sources.pictures import Inspection


@dataclass(frozen=True)
class Picture:
    """A readable picture; `index` is its position in its source."""

    index: int
    id: str
    label: str
    inspection: Inspection


@dataclass(frozen=True)
class Skipped:
    """A picture that is in no split, and why: `id` followed by `reason` reads as a sentence."""

    id: str
    kind: Literal["unreadable", "duplicate", "conflict", "other"]
    reason: str


def without_copies(pictures: Sequence[Picture], elsewhere: dict[bytes, Picture]) -> tuple[list[Picture], list[Skipped]]:
    """The pictures without copies of one another, and those that were left out.

    Keeps the first of several copies. Keeps none if their labels differ, because nobody knows which label is right,
    and none if there is a copy in `elsewhere`, a dict from the digest of a picture's pixels to the picture.
    """
    copies: dict[bytes, list[Picture]] = {}
    for picture in pictures:
        copies.setdefault(picture.inspection.pixels_digest, []).append(picture)
    kept, skipped = [], []
    for picture in pictures:
        digest = picture.inspection.pixels_digest
        first = copies[digest][0]
        disagreeing = [copy for copy in copies[digest] if copy.label != picture.label]
        if disagreeing:
            skipped.append(Skipped(picture.id, "conflict", _conflict(picture, disagreeing)))
        elif digest in elsewhere or first is not picture:
            skipped.append(Skipped(picture.id, "duplicate", _duplicate(picture, elsewhere.get(digest, first))))
        else:
            kept.append(picture)
    return kept, skipped


def _conflict(picture: Picture, others: list[Picture]) -> str:
    more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
    return f"is labelled {picture.label}, but its copy {others[0].id} is labelled {others[0].label}{more}"


def _duplicate(picture: Picture, original: Picture) -> str:
    differs = f", which is labelled {original.label}" if original.label != picture.label else ""
    return f"is a copy of {original.id}{differs}"


def quotas(counts: dict[str, int], wanted: int) -> dict[str, int]:
    """Divides `wanted` among labels in proportion to their counts; fractions go to the largest remainders."""
    total = sum(counts.values())
    shares = {label: divmod(wanted * count, total) for label, count in counts.items()}
    short = wanted - sum(whole for whole, _ in shares.values())
    topped_up = set(sorted(counts, key=lambda label: -shares[label][1])[:short])
    return {label: whole + (label in topped_up) for label, (whole, _) in shares.items()}


def draw(pictures: Sequence[Picture], quota: dict[str, int], seed: int) -> list[Picture]:
    """Draws `quota[label]` pictures of every label and returns all of them in a random order.

    The random order is by a hash of the seed and the picture's file. It is the same on every machine, and adding a
    picture to the source changes little of what is drawn.
    """

    def random_key(picture: Picture) -> bytes:
        return hashlib.sha256(f"{seed}:".encode() + picture.inspection.bytes_digest).digest()

    by_label: dict[str, list[Picture]] = {label: [] for label in quota}
    for picture in sorted(pictures, key=random_key):
        by_label[picture.label].append(picture)
    chosen = [picture for label, number in quota.items() for picture in by_label[label][:number]]
    return sorted(chosen, key=random_key)
