"""Writes a task's pictures to data/{train,validation,test}.parquet.

The pictures, their groups and the seed alone decide which pictures are in which split. Exact copies are left out; near
duplicates and groups are on one side. Test is drawn first, then validation, then train, so asking for another number of
training rows changes nothing in test. Decisions about single pictures are applied to the drawn splits: an excluded
picture leaves its split without being replaced, so all other rows stay where they are. A picture that a decision brings
back, because it settles which of several copies is labelled right, can only be drawn for train.

Of a data set with several files we fetch only the files that the rows need: see `Deck`. This has a price. Copies in
files that were not fetched are not noticed (they do no harm, as every split comes from fetched files), and rows of one
file may have more in common than rows of all files.
"""

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlm.config.decisions import Decisions, load_decisions
from vlm.config.errors import InputError
from vlm.config.events import Emit, Log, Progress
from vlm.config.params import PrepareParams
from vlm.config.task import Task
from vlm.data import dataset
from vlm.data.dataset import Row
from vlm.sources import badges, checks
from vlm.sources.deck import Deck
from vlm.sources.folders import folder_pools
from vlm.sources.hub_datasets import hub_pools
from vlm.sources.pool import Pool, require_all_labels
from vlm.sources.report import SPLITS, Report, count
from vlm.sources.splits import Picture, Skipped
from vlm.sources.store import Store

_WORTH_PROCESSES = 200  # badges; rendering fewer takes less time than starting processes
_BADGE_ID = re.compile(r"(train|validation|test)-[0-9]{6}")


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


@dataclass(frozen=True)
class _Written:
    """A written split: the number of its rows by label, and what the decisions changed in it."""

    counts: dict[str, int]
    excluded: list[Skipped]
    relabelled: list[str]
    relabelled_to_the_same: list[str]


def _write(path: Path, rows: Iterable[Row], total: int, task: Task, decisions: Decisions, emit: Emit) -> _Written:
    """Writes a split after applying the decisions to its `total` rows. Raises InputError if they leave none."""
    written = _Written(dict.fromkeys(task.labels, 0), [], [], [])

    def decided() -> Iterator[Row]:
        for done, row in enumerate(rows, 1):
            emit(Progress(done, total, f"{path.stem} pictures"))
            if row.id in decisions.exclude:
                reason = f"is excluded: {decisions.exclude[row.id]}"
                written.excluded.append(Skipped(row.id, "excluded", reason))
                continue
            label = decisions.label(row.id, row.label)
            if row.id in decisions.relabel:
                (written.relabelled_to_the_same if label == row.label else written.relabelled).append(row.id)
            written.counts[label] += 1
            yield replace(row, label=label)

    emit(Progress(0, total, f"{path.stem} pictures"))
    dataset.write(path, decided())
    if not any(written.counts.values()):
        raise InputError(
            f"{checks.decisions_file(task)}: exclude: leaves no row in {path.stem}; exclude fewer pictures"
        )
    return written


def _decided(written: dict[str, _Written]) -> dict[str, Any]:
    """What the decisions changed, as fields of a Report without `skipped`."""
    return {
        "rows": {split: of_split.counts for split, of_split in written.items()},
        "relabelled": tuple(id_ for of_split in written.values() for id_ in of_split.relabelled),
        "test_changed": len(written["test"].excluded) + len(written["test"].relabelled),
    }


def _without_effect(task: Task, decisions: Decisions, written: dict[str, _Written]) -> list[str]:
    same = [id_ for of_split in written.values() for id_ in of_split.relabelled_to_the_same]
    return checks.relabelled_to_the_same(task, decisions, same)


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
    decisions = load_decisions(task)
    checks.require_known(task, decisions, _BADGE_ID.fullmatch, [f"{split}-000000" for split in SPLITS])
    icons = [source.icons[label] for label in task.labels]
    written = {}
    for stream, split in enumerate(SPLITS):
        total = getattr(rows, split)
        workers = (os.cpu_count() or 1) if total >= _WORTH_PROCESSES else 1
        rendered = badges.render_split(icons, total, seed, stream, source.severity, workers)
        named = (Row(f"{split}-{i:06d}", picture, task.labels[label]) for i, (label, picture) in enumerate(rendered))
        written[split] = _write(work / f"{split}.parquet", named, total, task, decisions, emit)
    excluded = (skipped for of_split in written.values() for skipped in of_split.excluded)
    asked = {split: getattr(rows, split) for split in SPLITS}
    notes = checks.beyond_the_rows(task, decisions, asked) + _without_effect(task, decisions, written)
    return Report(**_decided(written), skipped=tuple(excluded), notes=tuple(notes))


# Folders and data sets of the Hub


def _pools(task: Task, decisions: Decisions) -> dict[str, Pool]:
    """The pictures of a folder or Hub task: the pool "train", and pools of the splits that the source has of its own.

    The other splits are held out of train. Raises InputError.
    """
    if task.source.folder is not None:
        found = folder_pools(task)
    else:
        found = hub_pools(task)
        held = set(found["test"].labels) if "test" in found else set()
        if len(held) == 1 < len(task.labels) and None not in held:
            raise InputError(
                f"configs/tasks/{task.name}.yaml: source.test: every row of {task.source.test!r} is labelled "
                f"{held.pop()!r}, which looks like a placeholder; set it to null to hold test out of train"
            )
    ids = [id_ for pool in found.values() for id_ in pool.ids]
    checks.require_known(task, decisions, frozenset(ids).__contains__, ids)
    labels = {label for pool in found.values() for label in pool.labels}
    labels |= {decision.to for decision in decisions.relabel.values()}
    require_all_labels(task, labels, [other for pool in found.values() for other in pool.others])
    return found


def _from_pictures(task: Task, rows: PrepareParams, seed: int, work: Path, emit: Emit) -> Report:
    decisions = load_decisions(task)
    pools = _pools(task, decisions)
    held_out = [split for split in ("test", "validation") if split not in pools]
    decks: dict[str, Deck] = {}
    for name in ("test", "validation", "train"):
        if name in pools:
            # If two splits of the source have copies of one picture, the one in the earlier of this order stays.
            before, several = list(decks.values()), name == "train" and bool(held_out)
            decks[name] = Deck(
                name, pools[name], task.labels, seed, emit, before=before, decisions=decisions, several=several
            )
    _require_usable(task, decks, decisions)

    drawn: dict[str, tuple[str, list[Picture]]] = {}  # split -> the pool, what was drawn from it
    for split in ("test", "validation", "train"):
        name = split if split in decks else "train"
        drawn[split] = name, decks[name].draw(split, getattr(rows, split), held_out=name != split)
    skipped = [skip for deck in decks.values() for skip in deck.skipped]
    if skipped:
        emit(Log(f"{count(len(skipped), 'picture')} left out; the first: {skipped[0].id} {skipped[0].reason}"))
    _require_usable(task, decks, decisions)

    with Store(work / "pictures") as store:
        for name, deck in decks.items():
            store.add(name, deck.pool, deck.taken)
        written = {}
        for split in SPLITS:
            name, chosen = drawn[split]
            stored = (Row(picture.id, store.read(name, picture), picture.label) for picture in chosen)
            written[split] = _write(work / f"{split}.parquet", stored, len(chosen), task, decisions, emit)
    in_splits = [p for _, chosen in drawn.values() for p in chosen if p.id not in decisions.exclude]
    excluded = [skip for of_split in written.values() for skip in of_split.excluded]
    groups = {split: decks[name].groups(chosen) for split, (name, chosen) in drawn.items()}
    return Report(
        **_decided(written),
        skipped=(*skipped, *excluded),
        blank=tuple(picture.id for picture in in_splits if picture.inspection.blank),
        tiny=tuple(picture.id for picture in in_splits if picture.inspection.tiny),
        in_source=dict(Counter(label for pool in pools.values() for label in pool.labels if label is not None)),
        near_duplicates=sum(picture.index in decks["train"].clusters for picture in decks["train"].taken),
        groups=len(set().union(*groups.values())),
        notes=tuple(
            [
                *checks.relabelled_in_vain(task, decisions, skipped),
                *_without_effect(task, decisions, written),
                *checks.alike(task, decks["train"].swallowed),
                *checks.few_groups(task, pools["train"], splits=1 + len(held_out)),
                *(checks.shared_groups(groups) if "test" in decks else []),
            ]
        ),
    )


def _require_usable(task: Task, decks: dict[str, Deck], decisions: Decisions) -> None:
    """Raises InputError if all pictures were inspected and those of some label, or of all labels, cannot be used."""
    if not all(deck.complete for deck in decks.values()):
        return
    usable = [picture for name, deck in decks.items() for picture in (*deck.taken, *deck.usable(name))]
    if not usable:
        first = next(skip for deck in decks.values() for skip in deck.skipped)
        raise InputError(
            f"configs/tasks/{task.name}.yaml: source: none of the pictures can be used; the first, {first.id}, "
            f"{first.reason}"
        )
    found = {picture.label for picture in usable} | {decision.to for decision in decisions.relabel.values()}
    missing = set(task.labels) - found
    if missing:
        raise InputError(
            f"configs/tasks/{task.name}.yaml: labels: every picture labelled {min(missing)!r} is unreadable, a copy, "
            "or has a copy with another label; add pictures or remove the label"
        )
