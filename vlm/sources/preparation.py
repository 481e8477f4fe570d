"""A task's source -> data/{train,validation,test}.parquet.

Which pictures are in which split is a function of the pictures and the seed. Test is drawn first, then validation, so
that asking for another number of training rows moves nothing in or out of test. Exact copies are dropped before that.

A data set of several files is not fetched as a whole for a few rows: see `Deck`. That has a price: copies of which one
is in a file that was not fetched are not noticed (nor can they do harm: both splits come from fetched files), and rows
of one file may have more in common than rows of all.
"""

import csv
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vlm.config.errors import InputError
from vlm.config.events import Emit, Log, Progress
from vlm.config.params import PrepareParams
from vlm.config.task import Task
from vlm.data import dataset
from vlm.data.dataset import Row
from vlm.sources import badges
from vlm.sources.deck import Deck
from vlm.sources.folders import folder_pool
from vlm.sources.hub_datasets import hub_pools
from vlm.sources.pool import Pool, require_all_labels
from vlm.sources.splits import Picture, Skipped
from vlm.sources.store import Store

SPLITS = ("train", "validation", "test")
_WORTH_PROCESSES = 200  # badges; fewer are rendered sooner than processes start


@dataclass(frozen=True)
class Report:
    """What `prepare` did: rows by split and label (every label of the task, in its order), and what was left out."""

    rows: dict[str, dict[str, int]]
    skipped: tuple[Skipped, ...] = ()

    @property
    def total(self) -> int:
        return sum(sum(counts.values()) for counts in self.rows.values())

    def details(self) -> dict[str, int]:
        """Rows by split; labels, and the rows of the rarest and the commonest one over all splits; pictures left out."""
        sizes = [sum(counts[label] for counts in self.rows.values()) for label in self.rows["train"]]
        left_out = Counter(skipped.kind for skipped in self.skipped)
        return {
            **{f"{split}_rows": sum(self.rows[split].values()) for split in SPLITS},
            "left_out": len(self.skipped),
            "classes": len(sizes),
            "smallest_class": min(sizes),
            "largest_class": max(sizes),
            "duplicates_dropped": left_out["duplicate"],
            "conflicts_dropped": left_out["conflict"],
            "unreadable_skipped": left_out["unreadable"],
        }

    def summary(self) -> str:
        """A line: the rows of each split, and how many pictures were left out and why."""
        rows = ", ".join(f"{sum(self.rows[split].values())} {split}" for split in SPLITS)
        left_out = Counter(skipped.kind for skipped in self.skipped)
        reasons = ", ".join(f"{count} {kind}" for kind, count in left_out.most_common())
        return f"{rows}; {len(self.skipped)} pictures left out" + (f" ({reasons})" if reasons else "")


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


def _pools(task: Task) -> dict[str, Pool]:
    """The pictures of a folder or Hub task by the name of the split that they are for.

    Always "train"; "test" where the source has a test split, else test is held out of train. Raises InputError.
    """
    if task.source.folder is not None:
        found = {"train": folder_pool(task, Path(task.source.folder))}
    else:
        found = hub_pools(task)
        held = set(found["test"].labels) if "test" in found else set()
        if len(held) == 1 < len(task.labels):
            raise InputError(
                f"configs/tasks/{task.name}.yaml: source.test: every row of {task.source.test!r} is labelled "
                f"{held.pop()!r}, which looks like a placeholder; null holds test out of train"
            )
    require_all_labels(task, {label for pool in found.values() for label in pool.labels})
    return found


def _from_pictures(task: Task, rows: PrepareParams, seed: int, work: Path, emit: Emit) -> Report:
    pools = _pools(task)
    decks: dict[str, Deck] = {}
    for name in ("test", "train"):
        if name in pools:
            # Of copies in test and in train the one in test stays.
            decks[name] = Deck(name, pools[name], task.labels, seed, emit, before=decks.get("test"))
    _require_usable(task, decks)

    drawn: dict[str, tuple[str, list[Picture]]] = {}  # split -> the pool, what was drawn from it
    for split in ("test", "validation", "train"):
        name = split if split in decks else "train"
        drawn[split] = name, decks[name].draw(split, getattr(rows, split), held_out=name != split)
    skipped = [skip for deck in decks.values() for skip in deck.skipped]
    if skipped:
        kinds = ", ".join(f"{number} {kind}" for kind, number in Counter(s.kind for s in skipped).most_common())
        emit(Log(f"pictures left out: {kinds}; the first: {skipped[0].id} {skipped[0].reason}"))
    _require_usable(task, decks)

    with Store(work / "pictures") as store:
        for name, deck in decks.items():
            store.add(name, deck.pool, deck.taken)
        counts = {}
        for split in SPLITS:
            name, chosen = drawn[split]
            stored = (Row(picture.id, store.read(name, picture), picture.label) for picture in chosen)
            counts[split] = _write(work / f"{split}.parquet", stored, len(chosen), task.labels, emit)
    return Report(counts, tuple(skipped))


def _require_usable(task: Task, decks: "dict[str, Deck]") -> None:
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
    require_all_labels(task, {picture.label for picture in usable})
