"""Writes a task's pictures to data/{train,validation,test}.parquet.

The pictures and the seed alone decide which pictures are in which split. Exact copies are left out. Test is drawn
first, then validation, then train, so asking for another number of training rows changes nothing in test.

Of a data set with several files we fetch only the files that the rows need: see `Deck`. This has a price. Copies in
files that were not fetched are not noticed (they do no harm, as every split comes from fetched files), and rows of one
file may have more in common than rows of all files.
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
_WORTH_PROCESSES = 200  # badges; rendering fewer takes less time than starting processes
_KINDS = {  # the kinds of Skipped, as the summary names them
    "unreadable": "unreadable",
    "duplicate": "duplicate",
    "conflict": "with conflicting labels",
    "other": "of other classes",
}


@dataclass(frozen=True)
class Report:
    """What `prepare` did.

    `rows` are counts by split and label, with every label of the task in its order. `skipped` are the pictures that are
    in no split; `blank` and `tiny` are ids of pictures that are in one although they show nothing.
    """

    rows: dict[str, dict[str, int]]
    skipped: tuple[Skipped, ...] = ()
    blank: tuple[str, ...] = ()
    tiny: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        return sum(sum(counts.values()) for counts in self.rows.values())

    def details(self) -> dict[str, int]:
        """The rows of each split, the size of the smallest and the largest class, and the pictures left out by kind."""
        sizes = [sum(counts[label] for counts in self.rows.values()) for label in self.rows["train"]]
        left_out = Counter(skipped.kind for skipped in self.skipped)
        return {
            **{f"{split}_rows": sum(self.rows[split].values()) for split in SPLITS},
            "left_out": len(self.skipped),
            "classes": len(sizes),
            "smallest_class": min(sizes),
            "largest_class": max(sizes),
            "duplicates_left_out": left_out["duplicate"],
            "conflicts_left_out": left_out["conflict"],
            "unreadable_left_out": left_out["unreadable"],
            "other_classes_left_out": left_out["other"],
            "blank": len(self.blank),
            "tiny_pictures": len(self.tiny),
        }

    def summary(self) -> str:
        """One line: the rows of each split, and how many pictures were left out and why."""
        rows = ", ".join(f"{sum(self.rows[split].values())} {split}" for split in SPLITS)
        left_out = Counter(skipped.kind for skipped in self.skipped)
        reasons = ", ".join(f"{count} {_KINDS[kind]}" for kind, count in left_out.most_common())
        return f"{rows}; {_count(len(self.skipped), 'picture')} left out" + (f" ({reasons})" if reasons else "")

    def warnings(self) -> list[str]:
        """At most one line about labels without a train or test row, and one about pictures that show nothing."""
        missing = []
        for split in ("train", "test"):
            counts = self.rows[split]
            without = [label for label, count in counts.items() if count == 0]
            if without:
                more = f" and {len(without) - 1} more" if len(without) > 1 else ""
                rows = sum(counts.values())
                missing.append(
                    f"{_count(rows, f'{split} row')} for {len(counts)} labels, none for {without[0]!r}{more}"
                )
        lines = [f"params.yaml: prepare: {'; '.join(missing)}; ask for more rows"] if missing else []
        odd = [(self.blank, "blank (all pixels equal)"), (self.tiny, "tiny (a side shorter than 8 pixels)")]
        found = [f"{len(ids)} {kind}: {', '.join(ids[:3])}{', ...' if ids[3:] else ''}" for ids, kind in odd if ids]
        return lines + ([f"pictures in the splits that show little: {'; '.join(found)}"] if found else [])


def prepare(task: Task, rows: PrepareParams, seed: int, directory: Path, emit: Emit) -> Report:
    """Writes train.parquet, validation.parquet and test.parquet into `directory`, all three or none.

    Raises InputError if the source cannot be read or has fewer rows than asked for.
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
    """Writes a CSV with one row for each picture that was left out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "kind", "reason"])
        writer.writerows((skipped.id, skipped.kind, skipped.reason) for skipped in report.skipped)
    temporary.replace(path)


def _write(path: Path, rows: Iterable[Row], total: int, labels: Iterable[str], emit: Emit) -> dict[str, int]:
    """Writes a split. Returns the number of its rows by label."""
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
            raise InputError(f"params.yaml: prepare.{split}: null means all, but badges have no limit; give a number")
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
    """The pictures of a folder or Hub task: the pool "train", and the pool "test" if the source has a test split.

    Without a pool "test", the test split is held out of train. Raises InputError.
    """
    if task.source.folder is not None:
        found = {"train": folder_pool(task)}
    else:
        found = hub_pools(task)
        held = set(found["test"].labels) if "test" in found else set()
        if len(held) == 1 < len(task.labels) and None not in held:
            raise InputError(
                f"configs/tasks/{task.name}.yaml: source.test: every row of {task.source.test!r} is labelled "
                f"{held.pop()!r}, which looks like a placeholder; set it to null to hold test out of train"
            )
    labels = {label for pool in found.values() for label in pool.labels}
    require_all_labels(task, labels, [other for pool in found.values() for other in pool.others])
    return found


def _from_pictures(task: Task, rows: PrepareParams, seed: int, work: Path, emit: Emit) -> Report:
    pools = _pools(task)
    decks: dict[str, Deck] = {}
    for name in ("test", "train"):
        if name in pools:
            # If test and train have copies of one picture, the one in test stays.
            decks[name] = Deck(name, pools[name], task.labels, seed, emit, before=decks.get("test"))
    _require_usable(task, decks)

    drawn: dict[str, tuple[str, list[Picture]]] = {}  # split -> the pool, what was drawn from it
    for split in ("test", "validation", "train"):
        name = split if split in decks else "train"
        drawn[split] = name, decks[name].draw(split, getattr(rows, split), held_out=name != split)
    skipped = [skip for deck in decks.values() for skip in deck.skipped]
    if skipped:
        emit(Log(f"{_count(len(skipped), 'picture')} left out; the first: {skipped[0].id} {skipped[0].reason}"))
    _require_usable(task, decks)

    with Store(work / "pictures") as store:
        for name, deck in decks.items():
            store.add(name, deck.pool, deck.taken)
        counts = {}
        for split in SPLITS:
            name, chosen = drawn[split]
            stored = (Row(picture.id, store.read(name, picture), picture.label) for picture in chosen)
            counts[split] = _write(work / f"{split}.parquet", stored, len(chosen), task.labels, emit)
    chosen = [picture for _, pictures in drawn.values() for picture in pictures]
    blank = tuple(picture.id for picture in chosen if picture.inspection.blank)
    tiny = tuple(picture.id for picture in chosen if picture.inspection.tiny)
    return Report(counts, tuple(skipped), blank, tiny)


def _require_usable(task: Task, decks: dict[str, Deck]) -> None:
    """Raises InputError if all pictures were inspected and those of some label, or of all labels, cannot be used."""
    if not all(deck.complete for deck in decks.values()):
        return
    usable = [picture for deck in decks.values() for picture in (*deck.taken, *deck.usable())]
    if not usable:
        first = next(skip for deck in decks.values() for skip in deck.skipped)
        raise InputError(
            f"configs/tasks/{task.name}.yaml: source: none of the pictures can be used; the first, {first.id}, "
            f"{first.reason}"
        )
    missing = set(task.labels) - {picture.label for picture in usable}
    if missing:
        raise InputError(
            f"configs/tasks/{task.name}.yaml: labels: every picture labelled {min(missing)!r} is unreadable, a copy, "
            "or has a copy with another label; add pictures or remove the label"
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
