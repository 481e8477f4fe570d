"""Where a task's pictures come from, other than badges: a folder of one's own, or a data set of the Hub."""

import csv
import fnmatch
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any

import platformdirs
import pyarrow.parquet as pq
from ruamel.yaml import YAML, YAMLError

from vlm import hub, pinned
from vlm.errors import InputError
from vlm.task import Task

_BATCH = 64  # rows of a Hub data set in memory at once


@dataclass(frozen=True)
class Pool:
    """Pictures to draw splits from: ids, labels (as in the task), and, in the same order, how to read each."""

    ids: list[str]
    labels: list[str]
    shards: list[range]  # the pictures of each file of the source, by their place in `ids`; together all of them
    # shard -> its pictures, in order; fetches the shard if it is not here. Can be called again. A picture's bytes are
    # read by calling what it yields, which may raise OSError.
    readers: Callable[[int], Iterator[Callable[[], bytes]]]


def pools(task: Task) -> dict[str, Pool]:
    """The pictures of a folder or Hub task by the name of the split that they are for.

    Always "train"; "test" where the source has a test split, else test is held out of train. Raises InputError.
    """
    if task.source.folder is not None:
        found = {"train": _folder_pool(task, Path(task.source.folder))}
    else:
        found = _hub_pools(task)
        held = set(found["test"].labels) if "test" in found else set()
        if len(held) == 1 < len(task.labels):
            raise InputError(
                f"configs/tasks/{task.name}.yaml: source.test: every row of {task.source.test!r} is labelled "
                f"{held.pop()!r}, which looks like a placeholder; null holds test out of train"
            )
    require_all_labels(task, {label for pool in found.values() for label in pool.labels})
    return found


def require_all_labels(task: Task, found: set[str]) -> None:
    """Raises InputError for a label that no picture has."""
    missing = [label for label in task.labels if label not in found]
    if missing:
        raise InputError(
            f"configs/tasks/{task.name}.yaml: labels: no picture is labelled {missing[0]!r}; "
            "add pictures or remove the label"
        )


def _to_labels(task: Task, names: Sequence[Any], ids: Sequence[str]) -> list[str]:
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


# A folder


def _folder_pool(task: Task, folder: Path) -> Pool:
    file = f"configs/tasks/{task.name}.yaml"
    if not folder.is_dir():
        raise InputError(f"{file}: source.folder: {task.source.folder!r} is no folder here")
    pinned.verify_source(task)
    if task.source.metadata is not None:
        rows = _metadata_rows(task, folder / task.source.metadata)
    else:
        # What lies beside the folders of labels (a README, a licence) has no label.
        rows = [(name, name.split("/")[0]) for name in pinned.visible_files(folder) if "/" in name]
    if not rows:
        raise InputError(f"{file}: source.folder: {task.source.folder!r} has no pictures; it should hold LABEL/PICTURE")
    ids = [name for name, _ in rows]
    paths = [folder / name for name in ids]
    labels = _to_labels(task, [label for _, label in rows], ids)
    return Pool(ids, labels, [range(len(ids))], lambda shard: (path.read_bytes for path in paths))


def _metadata_rows(task: Task, path: Path) -> list[tuple[str, str]]:
    """(picture's path in the folder, its class) from a CSV or JSONL file."""
    rows = []
    for line, row in _read_metadata(path):
        values = []
        for key, columns in (("image", [task.columns.image]), ("label", task.columns.labels)):
            missing = [column for column in columns if row.get(column) in (None, "")]
            if missing:
                raise InputError(
                    f"{path}: line {line}: has no {missing[0]!r}, only {', '.join(map(str, row))}; "
                    f"columns.{key} of configs/tasks/{task.name}.yaml should name its {key}"
                )
            values.append(" ".join(str(row[column]) for column in columns))
        name = PurePosixPath(values[0])
        if name.is_absolute() or ".." in name.parts:
            raise InputError(f"{path}: line {line}: {values[0]!r} should be a path inside {task.source.folder}")
        rows.append((str(name), values[1]))
    return rows


def _read_metadata(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a metadata file with their line numbers."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix not in (".csv", ".jsonl"):
                raise InputError(f"{path}: should be a .csv or .jsonl file")
            if path.suffix == ".csv":
                reader = csv.DictReader(file)
                for row in reader:
                    yield reader.line_num, row
            else:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        row = json.loads(line)
                        if not isinstance(row, dict):
                            raise InputError(f"{path}: line {number}: should be an object, {{...}}")
                        yield number, row
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; source.metadata names it, relative to source.folder") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: line {number}: is no JSON: {error.msg}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as CSV or JSONL in UTF-8: {error}") from None


# A data set of the Hub


def _hub_pools(task: Task) -> dict[str, Pool]:
    commit = pinned.verify_source(task)
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
        key: sum(len(names) for _, names in _index(task, commit, key, split))
        for key, split in splits.items()
        if split is not None
    }


def _compare_with_expected(task: Task, found: dict[str, int]) -> None:
    source, file = task.source, f"configs/tasks/{task.name}.yaml"
    if source.expect is None or source.expect.revision != source.revision:
        return  # the counts are of another revision: a change of the revision is meant
    for key, rows in found.items():
        expected = getattr(source.expect, key)
        if expected is not None and rows != expected:
            raise InputError(
                f"{file}: source.expect.{key}: {expected} rows, but {source.hub!r} has {rows}: the data set has "
                f"changed; `python -m vlm.pin --task {task.name}` takes it as it is now"
            )


def _hub_pool(task: Task, commit: str, split: str, index: list[tuple[str, list[Any]]]) -> Pool:
    """The rows of a split's parquet files; ids are `SPLIT-ROW`."""
    key = f"configs/tasks/{task.name}.yaml: source.hub"
    ends = list(accumulate(len(names) for _, names in index))
    shards = [range(end - len(names), end) for end, (_, names) in zip(ends, index, strict=True)]
    ids = [f"{split}-{row:06d}" for row in range(ends[-1])]

    def readers(shard: int) -> Iterator[Callable[[], bytes]]:
        name = index[shard][0]
        file = hub.download(task.source.hub, commit, [name], "dataset", key) / name
        for batch in pq.ParquetFile(file).iter_batches(_BATCH, columns=[task.columns.image]):
            for value in batch.column(0).to_pylist():
                yield partial(_picture_bytes, value)

    labels = _to_labels(task, [name for _, names in index for name in names], ids)
    return Pool(ids, labels, shards, readers)


def _index(task: Task, commit: str, key: str, split: str) -> list[tuple[str, list[Any]]]:
    """A split's parquet files, and what each calls the class of each of its rows. Kept in the user's cache directory.

    Only the files' label columns travel for it.
    """
    source, columns = task.source, [task.columns.image, *task.columns.labels]
    asked = json.dumps([source.hub, commit, split, columns])
    kept = (
        platformdirs.user_cache_path("vlm-pipeline") / "datasets" / f"{hashlib.sha256(asked.encode()).hexdigest()}.json"
    )
    if kept.exists():
        return [(name, names) for name, names in json.loads(kept.read_text(encoding="utf-8"))]
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
        read = partial(_class_of_each_row, task, split, card)
        index.append((name, hub.read_part(source.hub, commit, name, "dataset", f"{file}: source.hub", read)))
    kept.parent.mkdir(parents=True, exist_ok=True)
    temporary = kept.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(index), encoding="utf-8")
    temporary.replace(kept)
    return index


def _class_of_each_row(task: Task, split: str, card: dict, shard: Any) -> list[Any]:
    """What a parquet file calls the class of each of its rows: names, or numbers as text; None where there is none."""
    file = pq.ParquetFile(shard)
    for key, columns in (("image", [task.columns.image]), ("label", task.columns.labels)):
        for column in columns:
            if column not in file.schema_arrow.names:
                raise InputError(
                    f"configs/tasks/{task.name}.yaml: columns.{key}: {column!r} is no column of {task.source.hub!r} "
                    f"({split}); it has {', '.join(file.schema_arrow.names)}"
                )
    table = file.read(columns=task.columns.labels)
    parts = []
    for column in task.columns.labels:
        class_names = _class_names(file.schema_arrow.metadata, card, column)
        values = []
        for value in table.column(column).to_pylist():
            is_class = class_names and isinstance(value, int) and 0 <= value < len(class_names)
            values.append(class_names[value] if is_class else None if value is None else str(value))
        parts.append(values)
    return [None if None in values else " ".join(values) for values in zip(*parts, strict=True)]


def _picture_bytes(value: Any) -> bytes:
    """The bytes in a cell of a `datasets.Image` column, or of a plain binary one."""
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise OSError("holds no bytes of a picture")
    return data


def _class_names(metadata: dict[bytes, bytes] | None, card: dict, column: str) -> list[str] | None:
    """What a label column's integers stand for, as `datasets` writes it into a parquet file or else into the card."""
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
        card = YAML(typ="safe", pure=True).load(rest.partition("\n---")[0])
    except YAMLError:
        return {}
    return card if isinstance(card, dict) else {}


def _patterns(card: dict, split: str) -> list[str]:
    """Patterns of a split's files: those of the card, else the places where the Hub looks."""
    places = [f"data/{split}-*", f"{split}-*.parquet", f"{split}.parquet", f"{split}/*.parquet"]
    return _split_patterns(card).get(split, places)


def _split_patterns(card: dict) -> dict[str, list[str]]:
    """split -> patterns of its files, in the default configuration of a data set's card."""
    configs = [config for config in card.get("configs", []) if isinstance(config, dict)]
    configs.sort(key=lambda config: not (config.get("default") or config.get("config_name") == "default"))
    files = configs[0].get("data_files", []) if configs else []
    patterns = {}
    for entry in files if isinstance(files, list) else []:
        if isinstance(entry, dict) and "split" in entry:
            path = entry.get("path", [])
            patterns[entry["split"]] = [path] if isinstance(path, str) else path
    return patterns
