"""A task's source -> data/{train,validation,test}.parquet.

Which pictures are in which split is a function of the pictures and the seed. Test is drawn first, then validation, so
that asking for another number of training rows moves nothing in or out of test. Exact copies are dropped before that.
"""

import csv
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
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
    found, skipped = _inspect_all(pools, emit)
    if skipped:
        kinds = ", ".join(f"{number} {kind}" for kind, number in Counter(s.kind for s in skipped).most_common())
        emit(Log(f"pictures left out: {kinds}; the first: {skipped[0].id} {skipped[0].reason}"))
    if not any(found.values()):
        raise InputError(
            f"configs/tasks/{task.name}.yaml: source: not one picture can be used; the first, {skipped[0].id}, "
            f"{skipped[0].reason}"
        )
    sources.require_all_labels(task, {picture.label for pool in found.values() for picture in pool})

    drawn: dict[str, tuple[str, list[Picture]]] = {}  # split -> the pool, what was drawn from it
    for split in ("test", "validation", "train"):
        pool = split if split in pools else "train"
        wanted = _wanted(split, getattr(rows, split), len(found[pool]), held_out=pool != split)
        chosen = splits.draw(found[pool], wanted, task.labels, seed)
        taken = {picture.index for picture in chosen}
        found[pool] = [picture for picture in found[pool] if picture.index not in taken]
        drawn[split] = pool, chosen

    with _Store(work / "pictures") as store:
        for name, pool in pools.items():
            store.add(name, pool, [picture for used, chosen in drawn.values() if used == name for picture in chosen])
        counts = {}
        for split in SPLITS:
            name, chosen = drawn[split]
            stored = (Row(picture.id, store.read(name, picture), picture.label) for picture in chosen)
            counts[split] = _write(work / f"{split}.parquet", stored, len(chosen), task.labels, emit)
    return Report(counts, tuple(skipped))


def _inspect_all(pools: dict[str, sources.Pool], emit: Emit) -> tuple[dict[str, list[Picture]], list[Skipped]]:
    """The usable pictures of every pool, and the others. Of copies in test and in train, the one in test stays."""
    usable, skipped = {}, []
    seen: dict[bytes, Picture] = {}
    for name in ("test", "train"):
        if name not in pools:
            continue
        readable, unreadable = _inspect(name, pools[name], emit)
        usable[name], copies = splits.without_copies(readable, seen)
        skipped += [*unreadable, *copies]
        seen.update((picture.inspection.pixels_digest, picture) for picture in readable)
    return usable, skipped


def _inspect(name: str, pool: sources.Pool, emit: Emit) -> tuple[list[Picture], list[Skipped]]:
    """Decodes every picture of a pool once, a few at a time. Those that cannot be read are skipped."""

    def inspect(read: Callable[[], bytes]) -> pictures.Inspection | str:
        try:
            return pictures.inspect(read())
        except pictures.Unreadable as error:
            return str(error)
        except OSError as error:
            return error.strerror or str(error)

    readable, unreadable, index = [], [], 0
    readers = pool.readers()
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # decoding and hashing run outside the interpreter's lock
        while chunk := list(islice(readers, _AT_ONCE)):
            for result in threads.map(inspect, chunk):
                if isinstance(result, str):
                    unreadable.append(Skipped(pool.ids[index], "unreadable", result))
                else:
                    readable.append(Picture(index, pool.ids[index], pool.labels[index], result))
                index += 1
            emit(Progress(index, len(pool.ids), f"{name} pictures checked"))
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
        for index, read in enumerate(pool.readers()):
            if index in wanted:
                data = read()
                if not wanted[index].inspection.store_as_is:
                    data = pictures.upright_png(data)
                self._places[name, index] = self._file.tell(), len(data)
                self._file.write(data)

    def read(self, name: str, picture: Picture) -> bytes:
        start, length = self._places[name, picture.index]
        self._file.seek(start)
        return self._file.read(length)
