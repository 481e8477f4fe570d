"""Draws splits from a pool of pictures; fetches and decodes only as many files of the pool as they need."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from vlm.config.decisions import Decisions
from vlm.config.errors import InputError
from vlm.config.events import Emit, Progress
from vlm.sources import pictures, splits
from vlm.sources.near_duplicates import NearDuplicates, Swallowed
from vlm.sources.pool import Pool
from vlm.sources.splits import Picture, Skipped

_AT_ONCE = 64  # picture files in memory while they are inspected


class Deck:
    """A pool from which splits are drawn one after the other.

    Shards are fetched and decoded in a random order, and only as many as the splits drawn so far need. A split is drawn
    from those shards alone, so a later split changes nothing in it. Labels keep the proportions that they have in the
    whole pool. Copies and near duplicates are found only among the fetched shards.
    """

    def __init__(
        self,
        name: str,
        pool: Pool,
        labels: Sequence[str],
        seed: int,
        emit: Emit,
        *,
        before: Sequence["Deck"] = (),
        decisions: Decisions,
        several: bool,
    ) -> None:
        """Pictures with a copy in a deck `before` are not drawn.

        If `several` splits are drawn from this deck, groups and near duplicates are kept on one side.
        """
        self.pool = pool
        self.taken: list[Picture] = []
        self.swallowed: list[Swallowed] = []
        self.clusters: dict[int, int] = {}  # index of each near duplicate -> number of its cluster
        self._name, self._labels, self._seed, self._emit, self._before = name, labels, seed, emit, before
        self._decisions = decisions
        self._near = NearDuplicates() if several else None
        self._held_out: dict[int, str] = {}  # index of each picture that was held out for a split -> the split
        self._readable: list[Picture] = []
        self._unreadable: list[Skipped] = []
        self._copies: list[Skipped] = []
        self._tied: list[Skipped] = []
        self._unit_of: dict[int, bytes] = {}
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
        return [*self._unreadable, *self._copies, *self._tied, *self.pool.others]

    def groups(self, chosen: Iterable[Picture]) -> set[str]:
        """The groups that the pictures are in."""
        names = self.pool.groups
        return {names[picture.index] for picture in chosen if names[picture.index] is not None} if names else set()

    def usable(self, split: str) -> list[Picture]:
        """The pictures of the fetched shards that may be drawn for a split.

        They are readable, in no split yet, not copies of others, and in no unit with pictures that were held out.
        Decisions about copies with different labels count in train only, so that they change no row of the others.
        """
        decisions = self._decisions if split == "train" else Decisions()
        fixed = [*self.taken, *(picture for deck in self._before for picture in deck._readable)]  # most important first
        taken = {picture.index for picture in self.taken}
        left = [picture for picture in self._readable if picture.index not in taken]
        elsewhere = {picture.inspection.pixels_digest: picture for picture in reversed(fixed)}
        kept, self._copies = splits.without_copies(left, elsewhere, decisions)
        if self._near is None:
            self._unit_of = splits.units(kept, None, {})
            return kept
        distinct = [*self.taken, *kept]
        self.clusters, self.swallowed = self._near.clusters(distinct)
        self._unit_of = splits.units(distinct, self.pool.groups, self.clusters)
        holders = {self._unit_of[p.index]: p for p in self.taken if p.index in self._held_out}
        tied = {p.index: holders[self._unit_of[p.index]] for p in kept if self._unit_of[p.index] in holders}
        self._tied = [Skipped(p.id, "tied", self._why_tied(p, tied[p.index])) for p in kept if p.index in tied]
        return [picture for picture in kept if picture.index not in tied]

    def _why_tied(self, picture: Picture, holder: Picture) -> str:
        """Why a picture cannot be drawn: `holder`, a picture in its unit, was held out."""
        split, groups = self._held_out[holder.index], self.pool.groups
        if groups is not None and groups[picture.index] is not None and groups[picture.index] == groups[holder.index]:
            return f"is in group {groups[picture.index]}, like {holder.id} in {split}"
        return f"is a near duplicate of {holder.id} in {split}, directly or through others"

    def draw(self, split: str, asked: int | None, held_out: bool) -> list[Picture]:
        """The pictures of a split. Raises InputError if there are too few.

        `held_out` says that other splits are drawn afterwards, as from the source's train split.
        """
        available = len(self.usable(split)) if self.complete else self.pool.labelled - len(self.taken)
        wanted = self._wanted(split, asked, available, held_out)
        in_pool = Counter(self.pool.labels)
        quota = splits.quotas({label: in_pool[label] for label in self._labels}, wanted)
        while not self.complete:
            found = Counter(picture.label for picture in self.usable(split))
            short = {label for label in self._labels if found[label] < quota[label]}
            if asked is not None and not short:
                break
            self._open(short)
        left = self.usable(split)
        if self.complete:
            found = Counter(picture.label for picture in left)
            wanted = self._wanted(split, asked, len(left), held_out)
            quota = splits.quotas({label: found[label] for label in self._labels}, wanted)
        chosen = splits.draw(left, quota, self._seed, self._unit_of, last=not held_out)
        self.taken += chosen
        if held_out:
            self._held_out |= {picture.index: split for picture in chosen}
        return chosen

    def _wanted(self, split: str, asked: int | None, available: int, held_out: bool) -> int:
        """The number of rows of a split. Raises InputError if more are asked for than are available."""
        key = f"params.yaml: prepare.{split}"
        if asked is None and held_out:
            raise InputError(f"{key}: null means all, which leaves none to train on; give a number")
        if (asked or 1) > available:
            if asked is None and self._near is None:
                raise InputError(
                    f"{key}: null means all, but the source's {split} split has no usable picture of a label "
                    "(readable, distinct, in no other split); add pictures to it"
                )
            tied = f"; {len(self._tied)} more are tied to other splits" if self._tied else ""
            elsewhere = " or in the other splits" if self._near is not None else ", or null for all"
            remedy = f"ask for fewer here{elsewhere}"
            if (asked or 1) <= available + len(self._tied):
                cause = "many near duplicates" if self.pool.groups is None else "few groups (columns.group)"
                remedy = f"there are too {cause} for the splits"
            raise InputError(
                f"{key}: {asked or 'all'} rows are asked for, {available} are available (readable, distinct, in no "
                f"other split{tied}); {remedy}"
            )
        return asked or available

    def _open(self, short: set[str]) -> None:
        """Inspects the next shard, preferring shards that have pictures of the labels in `short`."""

        def helps(shard: int) -> bool:
            return any(self.pool.labels[index] in short for index in self.pool.shards[shard])

        shard = next(filter(helps, self._closed), self._closed[0])
        self._closed.remove(shard)
        readable, unreadable = _inspect(self._name, self.pool, shard, self._near is not None, self._emit)
        if self._near is not None:
            self._near.add(readable)
        self._readable = sorted([*self._readable, *readable], key=lambda picture: picture.index)
        self._unreadable += unreadable


def _inspect(name: str, pool: Pool, shard: int, perceptual: bool, emit: Emit) -> tuple[list[Picture], list[Skipped]]:
    """Decodes every labelled picture of a shard once, a few at a time. Returns the readable and the unreadable ones."""

    def inspect(entry: tuple[int, Callable[[], bytes]]) -> Picture | Skipped:
        index, read = entry
        try:
            return Picture(index, pool.ids[index], pool.labels[index], pictures.inspect(read(), perceptual))
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
