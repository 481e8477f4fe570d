"""Draws splits from a pool of pictures; fetches and decodes only as many files of the pool as they need."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from vlm.config.errors import InputError
from vlm.config.events import Emit, Progress
from vlm.sources import pictures, splits
from vlm.sources.pool import Pool
from vlm.sources.splits import Picture, Skipped

_AT_ONCE = 64  # picture files in memory while they are inspected


class Deck:
    """A pool from which splits are drawn one after the other.

    Shards are fetched and decoded in a random order, and only as many as the splits drawn so far need. A split is drawn
    from those shards alone, so a later split changes nothing in it. Labels keep the proportions that they have in the
    whole pool. Copies are found only among the fetched shards.
    """

    def __init__(
        self, name: str, pool: Pool, labels: Sequence[str], seed: int, emit: Emit, before: "Deck | None"
    ) -> None:
        """Pictures with a copy in the deck `before` are not drawn."""
        self.pool = pool
        self.taken: list[Picture] = []
        self._name, self._labels, self._seed, self._emit, self._before = name, labels, seed, emit, before
        self._readable: list[Picture] = []
        self._unreadable: list[Skipped] = []
        self._copies: list[Skipped] = []
        labelled = [shard for shard, of_shard in enumerate(pool.shards) if any(pool.labels[i] for i in of_shard)]
        self._closed = sorted(labelled, key=lambda shard: hashlib.sha256(f"{seed}:{shard}".encode()).digest())
        if len(self._closed) == 1:
            self._open(set())

    @property
    def complete(self) -> bool:
        """Whether every shard that has labelled pictures was inspected."""
        return not self._closed

    @property
    def skipped(self) -> list[Skipped]:
        """The pictures left out so far."""
        return [*self._unreadable, *self._copies, *self.pool.others]

    def usable(self) -> list[Picture]:
        """The pictures of the fetched shards that are readable, in no split yet, and not copies of others."""
        fixed = [*self.taken, *(self._before._readable if self._before else [])]
        taken = {picture.index for picture in self.taken}
        left = [picture for picture in self._readable if picture.index not in taken]
        kept, self._copies = splits.without_copies(left, {p.inspection.pixels_digest: p for p in fixed})
        return kept

    def draw(self, split: str, asked: int | None, held_out: bool) -> list[Picture]:
        """The pictures of a split. Raises InputError if there are too few."""
        available = len(self.usable()) if self.complete else self.pool.labelled - len(self.taken)
        wanted = _wanted(split, asked, available, held_out)
        in_pool = Counter(self.pool.labels)
        quota = splits.quotas({label: in_pool[label] for label in self._labels}, wanted)
        while not self.complete:
            found = Counter(picture.label for picture in self.usable())
            short = {label for label in self._labels if found[label] < quota[label]}
            if asked is not None and not short:
                break
            self._open(short)
        left = self.usable()
        if self.complete:
            found = Counter(picture.label for picture in left)
            wanted = _wanted(split, asked, len(left), held_out)
            quota = splits.quotas({label: found[label] for label in self._labels}, wanted)
        chosen = splits.draw(left, quota, self._seed)
        self.taken += chosen
        return chosen

    def _open(self, short: set[str]) -> None:
        """Inspects the next shard, preferring shards that have pictures of the labels in `short`."""

        def helps(shard: int) -> bool:
            return any(self.pool.labels[index] in short for index in self.pool.shards[shard])

        shard = next(filter(helps, self._closed), self._closed[0])
        self._closed.remove(shard)
        readable, unreadable = _inspect(self._name, self.pool, shard, self._emit)
        self._readable = sorted([*self._readable, *readable], key=lambda picture: picture.index)
        self._unreadable += unreadable


def _inspect(name: str, pool: Pool, shard: int, emit: Emit) -> tuple[list[Picture], list[Skipped]]:
    """Decodes every labelled picture of a shard once, a few at a time. Returns the readable and the unreadable ones."""

    def inspect(entry: tuple[int, Callable[[], bytes]]) -> Picture | Skipped:
        index, read = entry
        try:
            return Picture(index, pool.ids[index], pool.labels[index], pictures.inspect(read()))
        except pictures.Unreadable as error:
            return Skipped(pool.ids[index], "unreadable", str(error))

    readable, unreadable = [], []
    of_shard = pool.shards[shard]
    entries = zip(of_shard, pool.readers(shard), strict=True)
    labelled = ((index, read) for index, read in entries if pool.labels[index] is not None)
    total = sum(pool.labels[index] is not None for index in of_shard)
    unit = f"{name} pictures checked" + (f" (file {shard + 1} of {len(pool.shards)})" if len(pool.shards) > 1 else "")
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # decoding and hashing run outside the interpreter's lock
        while chunk := list(islice(labelled, _AT_ONCE)):
            for result in threads.map(inspect, chunk):
                if isinstance(result, Picture):
                    readable.append(result)
                else:
                    unreadable.append(result)
            emit(Progress(len(readable) + len(unreadable), total, unit))
    return readable, unreadable


def _wanted(split: str, asked: int | None, available: int, held_out: bool) -> int:
    """The number of rows of a split. Raises InputError if more are asked for than are available."""
    if asked is None and held_out:
        raise InputError(f"params.yaml: prepare.{split}: null means all, which leaves none to train on; give a number")
    if (asked or 1) > available:
        raise InputError(
            f"params.yaml: prepare.{split}: {asked or 'all'} rows are asked for, {available} are available (readable, "
            "distinct, in no other split); ask for fewer here or in the other splits"
        )
    return asked or available
