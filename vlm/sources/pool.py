"""A pool of pictures from which splits are drawn."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vlm.config.errors import InputError
from vlm.config.task import Task
from vlm.sources.splits import Skipped


@dataclass(frozen=True)
class Pool:
    """Pictures to draw splits from. `ids` and `labels` have one entry per picture, in the same order."""

    ids: list[str]
    # The task's label of each picture; None if its class is not one of the labels (`other_classes: leave_out`).
    labels: list[str | None]
    # One range per file of the source: the indices into `ids` of the pictures in that file. Together they cover `ids`.
    shards: list[range]
    # shard number -> one function per picture, in order, that returns the picture's bytes and may raise OSError.
    # Fetches the shard if it is not on this machine. Can be called more than once.
    readers: Callable[[int], Iterator[Callable[[], bytes]]]
    others: tuple[Skipped, ...] = ()  # the pictures without a label
    groups: list[str | None] | None = None  # each picture's group, if the task names a column for it

    @property
    def labelled(self) -> int:
        """How many pictures have one of the task's labels."""
        return len(self.ids) - len(self.others)


def make_pool(
    task: Task,
    ids: list[str],
    names: Sequence[Any],
    shards: list[range],
    readers: Callable[[int], Iterator[Callable[[], bytes]]],
    groups: list[str | None] | None = None,
) -> Pool:
    """A pool of pictures whose classes the data calls `names`; None stands for no class at all.

    Raises InputError for a class that is not one of the task's labels, unless the task leaves such pictures out.
    """
    labels = _labels_by_name(task)
    unknown = Counter(name for name in names if name not in labels)
    if unknown and task.other_classes == "error":
        raise InputError(f"configs/tasks/{task.name}.yaml: {_unknown_class(task, unknown, names, ids)}")
    others = tuple(
        Skipped(id_, "other", "has no label" if name is None else f"is labelled {name}")
        for id_, name in zip(ids, names, strict=True)
        if name not in labels
    )
    return Pool(ids, [labels.get(name) for name in names], shards, readers, others, groups)


def require_all_labels(task: Task, found: set[str | None], others: Sequence[Skipped] = ()) -> None:
    """Raises InputError for a label that no picture has. `others` are the pictures whose class is not a label."""
    missing = [label for label in task.labels if label not in found]
    if not missing:
        return
    key = f"configs/tasks/{task.name}.yaml: labels"
    for other in others:
        if _folded(other.reason.removeprefix("is labelled ")) == _folded(missing[0]):
            raise InputError(
                f"{key}: no picture is labelled {missing[0]!r}, but {other.id} {other.reason}; spell both alike"
                f"{_invisible(other.reason.removeprefix('is labelled '), missing[0])}"
            )
    raise InputError(f"{key}: no picture is labelled {missing[0]!r}; add pictures or remove the label")


def _labels_by_name(task: Task) -> dict[str, str]:
    """What the data calls a class -> the task's label."""
    return task.classes if task.classes is not None else {label: label for label in task.labels}


def _unknown_class(task: Task, unknown: Counter, names: Sequence[Any], ids: Sequence[str]) -> str:
    """`key: what is wrong, what would be right`, about the most useful example of the classes that are not labels."""
    known = {_folded(name): name for name in _labels_by_name(task)}
    # A class that differs from a label only in spelling is probably a mistake; others may be meant to be left out.
    by_frequency = [name for name, _ in unknown.most_common()]
    name = next((name for name in by_frequency if _folded(name) in known), by_frequency[0])
    example = f"({ids[names.index(name)]} is one)"
    key = "labels" if task.classes is None else "classes"
    leave_out = "`other_classes: leave_out` leaves such pictures out"
    if name is None:
        columns = " and ".join(task.columns.labels)
        return f"columns.label: {columns}: {unknown[name]} of the data's pictures have no label {example}; {leave_out}"
    message = f"{key}: {name!r}, the label of {unknown[name]} of the data's pictures {example}, is missing"
    if _folded(name) in known:
        similar = known[_folded(name)]
        count = _invisible(name, similar) or " (case, white space and punctuation count)"
        return f"{message}, but looks like {similar!r}; spell both alike{count}, or {leave_out}"
    further = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
    return f"{message}{further}; add it, or {leave_out}"


def _invisible(name: str, label: str) -> str:
    """How two names differ that look equal; nothing if they do not."""
    if unicodedata.normalize("NFC", name) != unicodedata.normalize("NFC", label):
        return ""
    return " (they differ in Unicode form only: one has an accent as a character of its own; copy the data's name)"


def _folded(name: str | None) -> str:
    """A name without case, white space, punctuation and Unicode form; a name of punctuation only stays as it is."""
    text = unicodedata.normalize("NFKC", name or "").casefold()
    return re.sub(r"[\W_]+", "", text) or text
