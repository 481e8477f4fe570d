"""Pictures in a folder: folder/LABEL/PICTURE, folder/SPLIT/LABEL/PICTURE, or a CSV or JSONL file that lists them."""

import csv
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from vlm.config import pins
from vlm.config.errors import InputError
from vlm.config.task import Task
from vlm.sources import pictures
from vlm.sources.pool import Pool, make_pool

_SPLITS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}  # folder -> split


def folder_pools(task: Task) -> dict[str, Pool]:
    """The pictures of a folder task by split: "train" has all of them, unless the folder has splits of its own.

    Ids are paths relative to the folder. Raises InputError.
    """
    file, folder = f"configs/tasks/{task.name}.yaml", task.source.folder_path
    if not folder.is_dir():
        raise InputError(
            f"{file}: source.folder: there is no folder {task.source.folder!r}; relative paths start at the "
            f"repository, so put the pictures in {folder.absolute()} or correct the path"
        )
    pins.verify_source(task)
    if task.source.metadata is not None:
        rows = _metadata_rows(task, folder / task.source.metadata)
        return {"train": _pool(task, folder, rows)}
    # Files next to the labels' folders (a README, a license) have no label.
    names = [name for name in pins.visible_files(folder) if "/" in name]
    if not names:
        raise InputError(
            f"{file}: source.folder: {task.source.folder!r} has no pictures; they should be in it as "
            "LABEL/PICTURE, or source.metadata should name a CSV or JSONL file in it"
        )
    tops = {name.split("/")[0] for name in names}
    if not _has_own_splits(task, tops, deep=any(name.count("/") > 1 for name in names)):
        return {"train": _pool(task, folder, [(name, name.split("/")[0], None) for name in names])}
    by_split: dict[str, list[tuple[str, str, None]]] = {}
    for name in names:
        top, label, *rest = name.split("/")
        if rest:
            by_split.setdefault(_SPLITS[top], []).append((name, label, None))
    for top in sorted(tops):
        if _SPLITS[top] not in by_split:
            raise InputError(
                f"{file}: source.folder: {top}/ in {task.source.folder!r} has no pictures; they should be in it as "
                "LABEL/PICTURE"
            )
    return {split: _pool(task, folder, rows) for split, rows in by_split.items()}


def _has_own_splits(task: Task, tops: set[str], deep: bool) -> bool:
    """Whether the folder has splits of its own. Raises InputError.

    `tops` are the names of its subfolders; `deep` says whether these have subfolders with files. It has splits if it
    has train/ and one of the other splits, or train/LABEL/ and nothing else, and no such name is the name of a class.
    """
    classes = set(task.labels if task.classes is None else task.classes)
    found = tops & _SPLITS.keys()
    if "train" not in found or found & classes:
        return False
    if found == {"train"}:
        return tops == found and deep
    key = f"configs/tasks/{task.name}.yaml: source.folder: {task.source.folder!r}"
    others = sorted(tops - found)
    if others:
        raise InputError(
            f"{key} has {others[0]}/ beside train/; a folder with splits of its own should have train/, validation/ "
            "and test/ and no other subfolder"
        )
    if {"val", "validation"} <= found:
        raise InputError(f"{key} has val/ and validation/; put their pictures into one of them")
    return True


def _pool(task: Task, folder: Path, rows: list[tuple[str, str, str | None]]) -> Pool:
    """The pool of the pictures in `rows`: path in the folder, class, group."""
    ids, classes, groups = (list(column) for column in zip(*rows, strict=True))
    readers = [partial(pictures.read_file, folder / name) for name in ids]
    own = groups if task.columns.group is not None else None
    return make_pool(task, ids, classes, [range(len(ids))], lambda shard: iter(readers), own)


def _metadata_rows(task: Task, path: Path) -> list[tuple[str, str, str | None]]:
    """(picture's path in the folder, its class, its group or None) from a CSV or JSONL file. Raises InputError."""
    rows, hidden, group_column = [], [], task.columns.group
    for line, row in _read_metadata(path):
        image = _cell(task, path, line, row, "image", task.columns.image)
        classes = [_cell(task, path, line, row, "label", column) for column in task.columns.labels]
        name = PurePosixPath(image)
        if name.is_absolute() or ".." in name.parts:
            raise InputError(f"{path}: line {line}: {image!r} should be a path inside {task.source.folder}")
        if any(part.startswith(".") for part in name.parts):
            hidden.append((line, image))
        group = _cell(task, path, line, row, "group", group_column) if group_column is not None else ""
        rows.append((str(name), " ".join(classes), group or None))
    if not rows:
        raise InputError(f"{path}: has no rows; add one for each picture")
    if hidden:
        (line, image), *others = hidden
        more = f" (and {len(others)} more)" if others else ""
        raise InputError(
            f"{path}: line {line}: {image!r}{more} is hidden or in a hidden folder, and source.sha256 covers no such "
            "pictures; remove the row, or rename the picture"
        )
    return rows


def _cell(task: Task, path: Path, line: int, row: dict[str, Any], key: str, column: str) -> str:
    """The text of a cell. Raises InputError if there is no such column, or no valid text where some is needed."""
    if column not in row:
        names = ", ".join(str(name) for name in row if name is not None)
        advice = f"columns.{key} of configs/tasks/{task.name}.yaml should name the column that holds the {key}"
        if len(row) == 1 and any(separator in names for separator in ";\t"):
            advice = "the columns should be separated by commas"
        raise InputError(f"{path}: line {line}: has no column {column!r}, only {names}; {advice}")
    if row[column] in (None, "") and key == "group":
        return ""
    if row[column] in (None, ""):
        wanted = {"image": "a picture's path, relative to source.folder", "label": "the picture's label"}[key]
        raise InputError(f"{path}: line {line}: column {column!r} is empty; it should hold {wanted}")
    text = str(row[column])
    if any("\ud800" <= character <= "\udfff" for character in text):  # JSON can have half of a character
        raise InputError(f"{path}: line {line}: column {column!r}: {text!r} is not valid Unicode; correct it")
    return text


def _read_metadata(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a metadata file with their line numbers. Raises InputError."""
    if path.suffix not in (".csv", ".jsonl"):
        raise InputError(f"{path}: should be a .csv or .jsonl file")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from _read_csv(path, file) if path.suffix == ".csv" else _read_jsonl(path, file)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; source.metadata names it, relative to source.folder") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as CSV or JSONL in UTF-8: {error}") from None


def _read_csv(path: Path, file: Iterator[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(file)
    if not reader.fieldnames:
        raise InputError(f"{path}: is empty; its first line should name the columns")
    empty = True
    for row in reader:
        empty = False
        yield reader.line_num, row
    if empty:
        raise InputError(f"{path}: has only a header ({', '.join(reader.fieldnames)}); add a row for each picture")


def _read_jsonl(path: Path, file: Iterator[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}: line {number}: is not JSON: {error.msg}") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}: line {number}: should be a JSON object, {{...}}")
        yield number, row
