"""Finds near duplicates: pictures that look alike to a perceptual hash, such as one saved again in another size.

The threshold is strict, because a wrong match costs pictures (what does not fit into a split with its unit is in none)
and a missed one costs little. Pictures that only resemble each other are no near duplicates.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlm.sources.splits import Picture

# Of 256 bits. Chosen by hand, on 200 badges and 200 cut-outs of two photos, each saved again as a worse JPEG, at half
# to 1.5 times the size, darker or brighter: 92 to 100 % of them differ from the original by no more than this. So do
# none of 360,000 pairs of different pictures, and 3 of 1.6 million pairs of scanned digits (128 pixels).
_DISTANCE = 24
_AT_ONCE = 200_000  # pairs that are compared at once: few enough for the processor's cache
_MOST_LINKS = 2_000_000  # pairs of near duplicates that are kept before their clusters are joined, for the memory
_TOO_LARGE = 0.5  # of a class
_ALIKE = 10  # pictures; a smaller cluster says too little about a class


@dataclass(frozen=True)
class Swallowed:
    """A class of which most pictures look alike to the perceptual hash: `alike` of its `pictures` are one cluster."""

    label: str
    alike: int
    pictures: int


class NearDuplicates:
    """Clusters of near duplicates, directly or through others, among all pictures that were added."""

    def __init__(self) -> None:
        self._indices: list[int] = []  # of the pictures that have a hash, in the order in which they were added
        self._hashes = np.empty((0, 4), np.uint64)
        self._clusters = np.empty(0, np.int64)

    def add(self, pictures: Sequence[Picture]) -> None:
        """Compares new pictures with each other and with all earlier ones. Pictures without a hash are ignored."""
        new = [picture for picture in pictures if picture.inspection.perceptual_hash is not None]
        if not new:
            return
        start, total = len(self._indices), len(self._indices) + len(new)
        self._indices += [picture.index for picture in new]
        added = np.frombuffer(b"".join(picture.inspection.perceptual_hash for picture in new), np.uint64)
        self._hashes = np.concatenate([self._hashes, added.reshape(-1, 4)])
        self._clusters = np.concatenate([self._clusters, np.arange(start, total)])
        links: list[tuple[np.ndarray, np.ndarray]] = []
        pairs = 0
        rows = max(1, _AT_ONCE // total)
        for first in range(start, total, rows):
            last = min(first + rows, total)
            near = _distances(self._hashes[first:last], self._hashes[:last]) <= _DISTANCE
            near[np.arange(last - first), np.arange(first, last)] = False  # a picture and itself
            one, other = np.nonzero(near)
            links.append((one + first, other))
            pairs += len(one)
            if last == total or pairs > _MOST_LINKS:
                self._join(links)
                links, pairs = [], 0

    def _join(self, links: list[tuple[np.ndarray, np.ndarray]]) -> None:
        """Joins the clusters of linked pictures."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        _, representative, number = np.unique(self._clusters, return_index=True, return_inverse=True)
        total = len(self._clusters)
        one = np.concatenate([np.arange(total), *(ends for ends, _ in links)])
        other = np.concatenate([representative[number], *(ends for _, ends in links)])
        graph = coo_array((np.ones(len(one), bool), (one, other)), shape=(total, total))
        self._clusters = connected_components(graph, directed=False)[1].astype(np.int64)

    def clusters(self, pictures: Sequence[Picture]) -> tuple[dict[int, int], list[Swallowed]]:
        """Maps the indices of near duplicates among `pictures` to the number of their cluster.

        Without the clusters of which one class has at least ten pictures, more than half of that class: no sensible
        split would be left. These classes are returned as well. The pictures may be bursts, but mostly they are of a
        kind that the hash cannot tell apart. A cluster is judged only by the class that has most of its pictures, so
        that a few pictures of a rare class do not end the protection of another one.
        """
        numbers = dict(zip(self._indices, self._clusters.tolist(), strict=True))
        known = [picture for picture in pictures if picture.index in numbers]
        in_class = Counter(picture.label for picture in pictures)
        members: dict[int, Counter[str]] = {}
        for picture in known:
            members.setdefault(numbers[picture.index], Counter())[picture.label] += 1
        swallowed = {}
        for cluster, of_cluster in members.items():
            label = max(of_cluster, key=lambda label: (of_cluster[label], in_class[label], label))
            alike = of_cluster[label]
            if alike >= _ALIKE and alike > _TOO_LARGE * in_class[label]:
                swallowed[cluster] = Swallowed(label, alike, in_class[label])
        kept = {
            picture.index: numbers[picture.index]
            for picture in known
            if members[numbers[picture.index]].total() > 1 and numbers[picture.index] not in swallowed
        }
        return kept, sorted(swallowed.values(), key=lambda found: found.label)


def _distances(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Hamming distances of hashes, shape (len(some), len(others))."""
    found = np.zeros((len(some), len(others)), np.uint16)
    for word in range(others.shape[1]):
        found += np.bitwise_count(some[:, word, None] ^ others[None, :, word])
    return found
