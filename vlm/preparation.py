"""A task's source -> data/{train,validation,test}.parquet.

Which pictures are in which split is a function of the pictures and the seed. Test is drawn first, then validation, so
that asking for another number of training rows moves nothing in or out of test. Exact copies are dropped before that.

A data set of several files is not fetched as a whole for a few rows: see `_Deck`. That has a price: copies of which one
is in a file that was not fetched are not noticed (nor can they do harm: both splits come from fetched files), and rows
of one file may have more in common than rows of all.
"""

import csv
import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from vlm import badges, dataset, pictures, sources, splits
from vlm.dataset import Row
from vlm.errors import InputError
from vlm.events import Emit, Log, Progress
from vlm.params import PrepareParams
from vlm.splits import Picture, Skipped
from vlm.task import Task

SPLITS = ("train", "validation", "test")
_AT_ONCE = 64  # picture files in memory while they are inspected
_WORTH_PROCESSES = 200  # badges; fewer are rendered sooner than processes start


@dataclass(frozen=True)
class Report:
    """What `prepare` did: rows by split and label (every label of the task, in its order), and what was left out."""

    rows: dict[str, dict[str, int]]
    skipped: tuple[Skipped, ...] = ()

    @property
    def total(self) -> int:
        return sum(sum(counts.values()) for counts in self.rows.values())

    def metrics(self) -> dict[str, int]:
        """Rows by split; labels, and the rows of the rarest and the commonest one over all splits; rows left out."""
        sizes = [sum(counts[label] for counts in self.rows.values()) for label in self.rows["train"]]
        left_out = Counter(skipped.kind for skipped in self.skipped)
        return {
            **{f"{split}_rows": sum(self.rows[split].values()) for split in SPLITS},
            "classes": len(sizes),
            "smallest_class": min(sizes),
            "largest_class": max(sizes),
            "duplicates_dropped": left_out["duplicate"],
            "conflicts_dropped": left_out["conflict"],
            "unreadable_skipped": left_out["unreadable"],
        }


def prepare(task: Task, rows: PrepareParams, seed: int, directory: Path, emit: Emit) -> Report:
    """Writes train.parquet, validation.parquet and test.parquet into `directory`, all three or none.

    Raises InputError for a source that cannot be read, and for more rows than it has.
    """
    work = directory / ".unfinished"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        make = _from_badges if task.source.badges is not None else _from_pictures
        report = make(task, rows, seed, work, emit)
        for split in SPLITS:
            (work / f"{split}.parquet").replace(directory / f"{split}.parquet")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return report


def write_skipped(path: Path, report: Report) -> None:
    """A CSV with a row for every picture that was left out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "kind", "reason"])
        writer.writerows((skipped.id, skipped.kind, skipped.reason) for skipped in report.skipped)
    temporary.replace(path)


def _write(path: Path, rows: Iterable[Row], total: int, labels: Iterable[str], emit: Emit) -> dict[str, int]:
    """Writes a split. Returns its rows by label."""
    counts = dict.fromkeys(labels, 0)

    def counted() -> Iterator[Row]:
        for done, row in enumerate(rows, 1):
            counts[row.label] += 1
            emit(Progress(done, total, f"{path.stem} pictures"))
            yield row

    emit(Progress(0, total, f"{path.stem} pictures"))
    dataset.write(path, counted())
    return counts


# Badges


def _from_badges(task: Task, rows: PrepareParams, seed: int, work: Path, emit: Emit) -> Report:
    source = task.source.badges
    for label, name in source.icons.items():
        try:
            badges.icon(name)
        except badges.UnknownIcon:
            raise InputError(
                f"configs/tasks/{task.name}.yaml: source.badges.icons.{label}: simple-icons-pack has no icon {name!r}"
            ) from None
    for split in SPLITS:
        if getattr(rows, split) is None:
            raise InputError(f"params.yaml: prepare.{split}: null means all, and badges are endless; give a number")
    icons = [source.icons[label] for label in task.labels]
    counts = {}
    for stream, split in enumerate(SPLITS):
        total = getattr(rows, split)
        workers = (os.cpu_count() or 1) if total >= _WORTH_PROCESSES else 1
        rendered = badges.render_split(icons, total, seed, stream, source.severity, workers)
        named = (Row(f"{split}-{i:06d}", picture, task.labels[label]) for i, (label, picture) in enumerate(rendered))
        counts[split] = _write(work / f"{split}.parquet", named, total, task.labels, emit)
    return Report(counts)


# Folders and data sets of the Hub


def _from_pictures(task: Task, rows: PrepareParams, seed: int, work: Path, emit: Emit) -> Report:
    pools = sources.pools(task)
    decks: dict[str, _Deck] = {}
    for name in ("test", "train"):
        if name in pools:
            # Of copies in test and in train the one in test stays.
            decks[name] = _Deck(name, pools[name], task.labels, seed, emit, before=decks.get("test"))
    _require_all_labels(task, decks)

    drawn: dict[str, tuple[str, list[Picture]]] = {}  # split -> the pool, what was drawn from it
    for split in ("test", "validation", "train"):
        name = split if split in decks else "train"
        drawn[split] = name, decks[name].draw(split, getattr(rows, split), held_out=name != split)
    skipped = [skip for deck in decks.values() for skip in deck.skipped]
    if skipped:
        kinds = ", ".join(f"{number} {kind}" for kind, number in Counter(s.kind for s in skipped).most_common())
        emit(Log(f"pictures left out: {kinds}; the first: {skipped[0].id} {skipped[0].reason}"))
    _require_all_labels(task, decks)

    with _Store(work / "pictures") as store:
        for name, deck in decks.items():
            store.add(name, deck.pool, deck.taken)
        counts = {}
        for split in SPLITS:
            name, chosen = drawn[split]
            stored = (Row(picture.id, store.read(name, picture), picture.label) for picture in chosen)
            counts[split] = _write(work / f"{split}.parquet", stored, len(chosen), task.labels, emit)
    return Report(counts, tuple(skipped))


def _require_all_labels(task: Task, decks: "dict[str, _Deck]") -> None:
    """Raises InputError for a label, or all, of which all pictures have been looked at and none can be used."""
    if not all(deck.complete for deck in decks.values()):
        return
    usable = [picture for deck in decks.values() for picture in (*deck.taken, *deck.usable())]
    if not usable:
        first = next(skip for deck in decks.values() for skip in deck.skipped)
        raise InputError(
            f"configs/tasks/{task.name}.yaml: source: not one picture can be used; the first, {first.id}, "
            f"{first.reason}"
        )
    sources.require_all_labels(task, {picture.label for picture in usable})


class _Deck:
    """A pool from which splits are drawn one after the other.

    Of its shards only as many are fetched and decoded as the splits so far need, in an order that the seed gives: a
    split is drawn from those alone, so that what comes later moves nothing in it. Every label still has its share in
    the whole pool. Copies are found among the shards that were fetched.
    """

    def __init__(
        self, name: str, pool: sources.Pool, labels: Sequence[str], seed: int, emit: Emit, before: "_Deck | None"
    ) -> None:
        """What is a copy of one in the deck `before` is not drawn."""
        self.pool = pool
        self.taken: list[Picture] = []
        self._name, self._labels, self._seed, self._emit, self._before = name, labels, seed, emit, before
        self._readable: list[Picture] = []
        self._unreadable: list[Skipped] = []
        self._copies: list[Skipped] = []
        chance = {shard: hashlib.sha256(f"{seed}:{shard}".encode()).digest() for shard in range(len(pool.shards))}
        self._closed = sorted(chance, key=chance.get)
        if len(self._closed) == 1:
            self._open(set())

    @property
    def complete(self) -> bool:
        return not self._closed

    @property
    def skipped(self) -> list[Skipped]:
        return [*self._unreadable, *self._copies]

    def usable(self) -> list[Picture]:
        """The pictures of fetched shards that are readable, in no split yet, and no copies of others."""
        fixed = [*self.taken, *(self._before._readable if self._before else [])]
        taken = {picture.index for picture in self.taken}
        left = [picture for picture in self._readable if picture.index not in taken]
        kept, self._copies = splits.without_copies(left, {p.inspection.pixels_digest: p for p in fixed})
        return kept

    def draw(self, split: str, asked: int | None, held_out: bool) -> list[Picture]:
        """The pictures of a split. Raises InputError if there are too few."""
        available = len(self.usable()) if self.complete else len(self.pool.ids) - len(self.taken)
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
        """Inspects the next shard, of those, if there are any, that hold labels of which there are too few."""

        def helps(shard: int) -> bool:
            return any(self.pool.labels[index] in short for index in self.pool.shards[shard])

        shard = next(filter(helps, self._closed), self._closed[0])
        self._closed.remove(shard)
        readable, unreadable = _inspect(self._name, self.pool, shard, self._emit)
        self._readable = sorted([*self._readable, *readable], key=lambda picture: picture.index)
        self._unreadable += unreadable


def _inspect(name: str, pool: sources.Pool, shard: int, emit: Emit) -> tuple[list[Picture], list[Skipped]]:
    """Decodes every picture of a shard once, a few at a time. Those that cannot be read are skipped."""

    def inspect(read: Callable[[], bytes]) -> pictures.Inspection | str:
        try:
            return pictures.inspect(read())
        except pictures.Unreadable as error:
            return str(error)
        except OSError as error:
            return error.strerror or str(error)

    readable, unreadable = [], []
    of_shard = pool.shards[shard]
    index, readers = of_shard.start, pool.readers(shard)
    unit = f"{name} pictures checked" + (f" (file {shard + 1} of {len(pool.shards)})" if len(pool.shards) > 1 else "")
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # decoding and hashing run outside the interpreter's lock
        while chunk := list(islice(readers, _AT_ONCE)):
            for result in threads.map(inspect, chunk):
                if isinstance(result, str):
                    unreadable.append(Skipped(pool.ids[index], "unreadable", result))
                else:
                    readable.append(Picture(index, pool.ids[index], pool.labels[index], result))
                index += 1
            emit(Progress(index - of_shard.start, len(of_shard), unit))
    return readable, unreadable


def _wanted(split: str, asked: int | None, available: int, held_out: bool) -> int:
    """The number of rows of a split, checked against what there is."""
    if asked is None and held_out:
        raise InputError(f"params.yaml: prepare.{split}: null means all, which leaves none to train on; give a number")
    if (asked or 1) > available:
        raise InputError(
            f"params.yaml: prepare.{split}: {asked or 'all'} rows are asked for, {available} are available (readable, "
            "distinct, in no other split)"
        )
    return asked or available


class _Store:
    """The drawn pictures, as they will be stored, in a file: a source is read in its own order, splits have another."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[tuple[str, int], tuple[int, int]] = {}  # (pool, index) -> (start, length)

    def __enter__(self) -> "_Store":
        self._file = self._path.open("w+b")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, name: str, pool: sources.Pool, chosen: list[Picture]) -> None:
        wanted = {picture.index: picture for picture in chosen}
        for shard, of_shard in enumerate(pool.shards):
            if wanted.keys().isdisjoint(of_shard):
                continue
            for index, read in zip(of_shard, pool.readers(shard), strict=True):
                if index not in wanted:
                    continue
                data = read()
                if not wanted[index].inspection.store_as_is:
                    data = pictures.upright_png(data)
                self._places[name, index] = self._file.tell(), len(data)
                self._file.write(data)

    def read(self, name: str, picture: Picture) -> bytes:
        start, length = self._places[name, picture.index]
        self._file.seek(start)
        return self._file.read(length)
