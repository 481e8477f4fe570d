"""A folder of one's own pictures: folder/LABEL/PICTURE, or a CSV or JSONL file that names pictures and labels."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from vlm.config import pins
from vlm.config.errors import InputError
from vlm.config.task import Task
from vlm.sources.pool import Pool, to_labels


def folder_pool(task: Task, folder: Path) -> Pool:
    file = f"configs/tasks/{task.name}.yaml"
    if not folder.is_dir():
        raise InputError(f"{file}: source.folder: {task.source.folder!r} is no folder here")
    pins.verify_source(task)
    if task.source.metadata is not None:
        rows = _metadata_rows(task, folder / task.source.metadata)
    else:
        # What lies beside the folders of labels (a README, a licence) has no label.
        rows = [(name, name.split("/")[0]) for name in pins.visible_files(folder) if "/" in name]
    if not rows:
        raise InputError(f"{file}: source.folder: {task.source.folder!r} has no pictures; it should hold LABEL/PICTURE")
    ids = [name for name, _ in rows]
    paths = [folder / name for name in ids]
    labels = to_labels(task, [label for _, label in rows], ids)
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
