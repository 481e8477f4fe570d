"""A data set of the Hub. Fetches the label columns of all files first, then only the files that the splits need."""

import fnmatch
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import platformdirs
import pyarrow.parquet as pq
import yaml

from vlm.config import hub, pins
from vlm.config.errors import InputError
from vlm.config.task import Task
from vlm.sources.pictures import Unreadable
from vlm.sources.pool import Pool, make_pool

_BATCH = 64  # rows of a Hub data set in memory at once
# The parquet files of a split: the name, and the class and group of each row (None: the cell is empty).
_Index = list[tuple[str, list[str | None], list[str | None]]]


def hub_pools(task: Task) -> dict[str, Pool]:
    """The pools of a Hub task by key of its source: "train", and "test" if it names a test split. Raises InputError."""
    commit = pins.verify_source(task)
    found = {
        key: _hub_pool(task, commit, split, _index(task, commit, key, split))
        for key, split in (("train", task.source.train), ("test", task.source.test))
        if split is not None
    }
    _compare_with_expected(task, {key: len(pool.ids) for key, pool in found.items()})
    return found


def count_rows(task: Task, commit: str) -> dict[str, int]:
    """Rows of a Hub task's source splits, by their key in the task's file ("train", "test")."""
    splits = {"train": task.source.train, "test": task.source.test}
    return {
        key: sum(len(names) for _, names, _ in _index(task, commit, key, split))
        for key, split in splits.items()
        if split is not None
    }


def _compare_with_expected(task: Task, found: dict[str, int]) -> None:
    source, file = task.source, f"configs/tasks/{task.name}.yaml"
    if source.expect is None or source.expect.revision != source.revision:
        return  # the counts are those of another revision, so the revision was changed on purpose
    for key, rows in found.items():
        expected = getattr(source.expect, key)
        if expected is not None and rows != expected:
            raise InputError(
                f"{file}: source.expect.{key}: {expected} rows, but {source.hub!r} has {rows}: the data set has "
                f"changed; `python -m vlm pin --task {task.name}` takes it as it is now"
            )


def _hub_pool(task: Task, commit: str, split: str, index: _Index) -> Pool:
    """The rows of a split's parquet files. `index` is from `_index`; ids are `SPLIT-ROW`."""
    key = f"configs/tasks/{task.name}.yaml: source.hub"
    ends = list(accumulate(len(names) for _, names, _ in index))
    shards = [range(end - len(names), end) for end, (_, names, _) in zip(ends, index, strict=True)]
    ids = [f"{split}-{row:06d}" for row in range(ends[-1])]

    def readers(shard: int) -> Iterator[Callable[[], bytes]]:
        name = index[shard][0]
        file = hub.download(task.source.hub, commit, [name], "dataset", key) / name
        for batch in pq.ParquetFile(file).iter_batches(_BATCH, columns=[task.columns.image]):
            for value in batch.column(0).to_pylist():
                yield partial(_picture_bytes, value)

    classes = [name for _, names, _ in index for name in names]
    groups = [group for _, _, of_file in index for group in of_file] if task.columns.group is not None else None
    return make_pool(task, ids, classes, shards, readers, groups)


def _index(task: Task, commit: str, key: str, split: str) -> _Index:
    """A split's parquet files, each with the names of its rows' classes and groups. Kept in the user's cache directory.

    Downloads only the columns of labels and groups.
    """
    source = task.source
    asked = json.dumps([source.hub, commit, split, task.columns.model_dump()])
    kept = (
        platformdirs.user_cache_path("vlm-pipeline") / "datasets" / f"{hashlib.sha256(asked.encode()).hexdigest()}.json"
    )
    if kept.exists():
        return [tuple(entry) for entry in json.loads(kept.read_text(encoding="utf-8"))]
    file = f"configs/tasks/{task.name}.yaml"
    card = _card(hub.download(source.hub, commit, ["README.md"], "dataset", f"{file}: source.hub") / "README.md")
    patterns = _patterns(card, split)
    names = [
        name
        for name in hub.files(source.hub, commit, "dataset", f"{file}: source.hub")
        if name.endswith(".parquet") and any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
    ]
    if not names:
        known = ", ".join(_split_patterns(card)) or "none that it declares"
        raise InputError(
            f"{file}: source.{key}: {source.hub!r} has no parquet files of a split {split!r}; its splits are {known}"
        )
    index = []
    for name in names:
        read = partial(_class_and_group_of_each_row, task, split, card)
        index.append((name, *hub.read_part(source.hub, commit, name, "dataset", f"{file}: source.hub", read)))
    kept.parent.mkdir(parents=True, exist_ok=True)
    temporary = kept.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(index), encoding="utf-8")
    temporary.replace(kept)
    return index


def _class_and_group_of_each_row(
    task: Task, split: str, card: dict, shard: Any
) -> tuple[list[str | None], list[str | None]]:
    """The class and the group of each row of a parquet file; None for an empty cell.

    A class is its name, or its number as text. Without a column of groups, the second list is empty. Raises InputError
    if a column is missing.
    """
    file = pq.ParquetFile(shard)
    groups = [task.columns.group] if task.columns.group is not None else []
    for key, columns in (("image", [task.columns.image]), ("label", task.columns.labels), ("group", groups)):
        for column in columns:
            if column not in file.schema_arrow.names:
                raise InputError(
                    f"configs/tasks/{task.name}.yaml: columns.{key}: {column!r} is no column of {task.source.hub!r} "
                    f"({split}); it has {', '.join(file.schema_arrow.names)}"
                )
    table = file.read(columns=list(dict.fromkeys([*task.columns.labels, *groups])))
    parts = []
    for column in task.columns.labels:
        class_names = _class_names(file.schema_arrow.metadata, card, column)
        values = []
        for value in table.column(column).to_pylist():
            is_class = class_names and isinstance(value, int) and 0 <= value < len(class_names)
            values.append(class_names[value] if is_class else None if value is None else str(value))
        parts.append(values)
    classes = [None if None in values else " ".join(values) for values in zip(*parts, strict=True)]
    cells = [value for column in groups for value in table.column(column).to_pylist()]
    return classes, [None if cell in (None, "") else str(cell) for cell in cells]


def _picture_bytes(value: Any) -> bytes:
    """The bytes in a cell of a `datasets.Image` column or of a plain binary column. Raises Unreadable."""
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise Unreadable("has no picture in its cell")
    return data


def _class_names(metadata: dict[bytes, bytes] | None, card: dict, column: str) -> list[str] | None:
    """The names of a label column's integers, from the metadata that `datasets` writes or else from the card."""
    features = json.loads((metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    if isinstance(features.get(column), dict) and "names" in features[column]:
        return features[column]["names"]
    info = card.get("dataset_info", {})
    for feature in info.get("features", []) if isinstance(info, dict) else []:
        kind = feature.get("dtype")
        if feature.get("name") == column and isinstance(kind, dict) and "class_label" in kind:
            names = kind["class_label"]["names"]
            return [names[key] for key in sorted(names, key=int)] if isinstance(names, dict) else names
    return None


def _card(path: Path) -> dict:
    """The YAML block at the head of a data set's README."""
    if not path.exists():
        return {}
    _, _, rest = path.read_text(encoding="utf-8").partition("---\n")
    try:
        card = yaml.safe_load(rest.partition("\n---")[0])
    except yaml.YAMLError:
        return {}
    return card if isinstance(card, dict) else {}


def _patterns(card: dict, split: str) -> list[str]:
    """Patterns of a split's files: those of the card, or else the places where the Hub looks."""
    places = [f"data/{split}-*", f"{split}-*.parquet", f"{split}.parquet", f"{split}/*.parquet"]
    return _split_patterns(card).get(split, places)


def _split_patterns(card: dict) -> dict[str, list[str]]:
    """Patterns of the files of each split, from the default configuration in a data set's card."""
    configs = [config for config in card.get("configs", []) if isinstance(config, dict)]
    configs.sort(key=lambda config: not (config.get("default") or config.get("config_name") == "default"))
    files = configs[0].get("data_files", []) if configs else []
    patterns = {}
    for entry in files if isinstance(files, list) else []:
        if isinstance(entry, dict) and "split" in entry:
            path = entry.get("path", [])
            patterns[entry["split"]] = [path] if isinstance(path, str) else path
    return patterns
