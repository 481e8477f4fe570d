"""Which pictures make up a split: no copies, every label in proportion, the rest left to the seed.

Pictures that belong together (near duplicates, or one group of the data) form a unit, and a unit is on one side of a
split. All other pictures are units of their own.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from vlm.config.decisions import Decisions
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
    kind: Literal["unreadable", "duplicate", "conflict", "other", "tied", "excluded"]
    reason: str


def without_copies(
    pictures: Sequence[Picture], elsewhere: Mapping[bytes, Picture], decisions: Decisions
) -> tuple[list[Picture], list[Skipped]]:
    """The pictures without copies of one another, and those that were left out.

    Keeps the first of several copies. Keeps none if their labels differ, because nobody knows which label is right,
    unless the decisions exclude or relabel some of them so that the others agree. Keeps none if there is a copy in
    `elsewhere`, a mapping from the digest of a picture's pixels to the picture.
    """
    copies: dict[bytes, list[Picture]] = {}
    for picture in pictures:
        copies.setdefault(picture.inspection.pixels_digest, []).append(picture)
    kept, skipped = [], []
    for picture in pictures:
        digest = picture.inspection.pixels_digest
        agreeing = _agreeing(copies[digest], decisions)
        if not agreeing:
            disagreeing = [copy for copy in copies[digest] if copy.label != picture.label]
            skipped.append(Skipped(picture.id, "conflict", _conflict(picture, disagreeing)))
        elif digest in elsewhere or agreeing[0] is not picture:
            skipped.append(Skipped(picture.id, "duplicate", _duplicate(picture, elsewhere.get(digest, agreeing[0]))))
        else:
            kept.append(picture)
    return kept, skipped


def _agreeing(copies: list[Picture], decisions: Decisions) -> list[Picture]:
    """The copies if their labels agree, or else those that are not excluded if their decided labels agree; or none."""
    if len({copy.label for copy in copies}) == 1:
        return copies
    left = [copy for copy in copies if copy.id not in decisions.exclude]
    return left if len({decisions.label(copy.id, copy.label) for copy in left}) == 1 else []


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


def units(
    pictures: Sequence[Picture], groups: Sequence[str | None] | None, clusters: Mapping[int, int]
) -> dict[int, bytes]:
    """Maps the index of each picture to its unit: pictures of one group or cluster, directly or through others.

    `groups` are by index, `clusters` map the indices of near duplicates to the number of their cluster. A unit is named
    by a digest that depends on its pictures' contents and groups alone, not on their order: for a picture that belongs
    with no other one, the digest of its file.
    """
    names = {
        picture.index: picture.inspection.bytes_digest
        if groups is None or groups[picture.index] is None
        else hashlib.sha256(f"group:{groups[picture.index]}".encode()).digest()
        for picture in pictures
    }
    clustered = [index for index in names if index in clusters]
    if not clustered:
        return names
    from scipy.cluster.hierarchy import DisjointSet

    joined, first = DisjointSet({names[index] for index in clustered}), {}
    for index in clustered:
        joined.merge(names[index], first.setdefault(clusters[index], names[index]))
    smallest = {name: min(subset) for subset in joined.subsets() for name in subset}
    return {index: smallest.get(name, name) for index, name in names.items()}


def draw(
    pictures: Sequence[Picture], quota: Mapping[str, int], seed: int, unit_of: Mapping[int, bytes], last: bool
) -> list[Picture]:
    """Draws `quota[label]` pictures of every label and returns all of them in a random order.

    The random order is by a hash of the seed and the unit's name. It is the same on every machine, and adding a picture
    to the source changes little of what is drawn. What is left of a unit cannot be in another split, so unless this is
    the `last` split, units that fit completely are drawn first.
    """

    def random_key(name: bytes) -> bytes:
        return hashlib.sha256(f"{seed}:".encode() + name).digest()

    def by_content(picture: Picture) -> bytes:
        return random_key(picture.inspection.bytes_digest)

    members: dict[bytes, list[Picture]] = {}
    for picture in sorted(pictures, key=by_content):
        members.setdefault(unit_of[picture.index], []).append(picture)
    ordered = [members[name] for name in sorted(members, key=random_key)]
    left, chosen, cut = Counter(quota), [], []
    for unit in ordered:
        needed = Counter(picture.label for picture in unit)
        if last or any(count > left[label] for label, count in needed.items()):
            cut.append(unit)
            continue
        left.subtract(needed)
        chosen += unit
    for picture in (picture for unit in cut for picture in unit):
        if left[picture.label] > 0:
            left[picture.label] -= 1
            chosen.append(picture)
    return sorted(chosen, key=by_content)
