"""A pool of pictures from which splits are drawn."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vlm.config.errors import InputError
from vlm.config.task import Task


@dataclass(frozen=True)
class Pool:
    """Pictures to draw splits from: ids, labels (as in the task), and, in the same order, how to read each."""

    ids: list[str]
    labels: list[str]
    shards: list[range]  # the pictures of each file of the source, by their place in `ids`; together all of them
    # shard -> its pictures, in order; fetches the shard if it is not here. Can be called again. A picture's bytes are
    # read by calling what it yields, which may raise OSError.
    readers: Callable[[int], Iterator[Callable[[], bytes]]]


def require_all_labels(task: Task, found: set[str]) -> None:
    """Raises InputError for a label that no picture has."""
    missing = [label for label in task.labels if label not in found]
    if missing:
        raise InputError(
            f"configs/tasks/{task.name}.yaml: labels: no picture is labelled {missing[0]!r}; "
            "add pictures or remove the label"
        )


def to_labels(task: Task, names: Sequence[Any], ids: Sequence[str]) -> list[str]:
    """The data's names for classes as the task's labels."""
    mapping = task.classes if task.classes is not None else {label: label for label in task.labels}
    unknown = Counter(name for name in names if name not in mapping)
    if unknown:
        name, count = unknown.most_common(1)[0]
        key = "labels" if task.classes is None else "classes"
        raise InputError(
            f"configs/tasks/{task.name}.yaml: {key}: {name!r}, the label of {count} of the data's pictures "
            f"({ids[names.index(name)]} is one), is missing; add it"
        )
    return [mapping[name] for name in names]
