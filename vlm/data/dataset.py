"""Writes and reads the splits, data/{train,validation,test}.parquet.

A row has an id (string), an image (struct of bytes and path, which `datasets` and the Hub's viewer show as a picture),
a label (string), and the image's width and height (in pixels), on which a prompt's length depends. The images are
upright 8-bit RGB, JPEG or PNG.
"""

import io
import json
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from threading import Lock

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vlm.config.errors import InputError

_ROW_GROUP = 16  # rows. Small, because readers take single rows in random order, and each reads a whole group

# `datasets` reads its features from the parquet file's metadata.
_STRING, _PIXELS = ({"dtype": dtype, "_type": "Value"} for dtype in ("string", "int32"))
_FEATURES = {"id": _STRING, "image": {"_type": "Image"}, "label": _STRING, "width": _PIXELS, "height": _PIXELS}
_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        "label": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
    },
    metadata={"huggingface": json.dumps({"info": {"features": _FEATURES}})},
)


@dataclass(frozen=True)
class Row:
    id: str
    image: bytes  # the picture's file
    label: str


def write(path: Path, rows: Iterable[Row]) -> None:
    """Writes a split, streaming `rows`. Equal rows give equal files, byte for byte."""
    rows = iter(rows)
    with pq.ParquetWriter(path, _SCHEMA, compression="none", use_dictionary=["label"]) as writer:
        while group := list(islice(rows, _ROW_GROUP)):
            writer.write_table(pa.Table.from_pylist(list(map(_columns, group)), schema=_SCHEMA))


def _columns(row: Row) -> dict:
    width, height = Image.open(io.BytesIO(row.image)).size  # reads the file's header only
    image = {"bytes": row.image, "path": row.id}
    return {"id": row.id, "image": image, "label": row.label, "width": width, "height": height}


def count(path: str | Path) -> int:
    """The number of rows of a split. Raises InputError if there is no such file."""
    return _open(path).metadata.num_rows


def ids_and_labels(path: str | Path) -> tuple[list[str], list[str]]:
    """The ids and the labels of a split, in order. Raises InputError if there is no such file."""
    table = _open(path).read(columns=["id", "label"])
    return table.column("id").to_pylist(), table.column("label").to_pylist()


def image_sizes(path: str | Path) -> list[tuple[int, int]]:
    """(width, height) in pixels of a split's pictures, in order, without reading the pictures.

    Raises InputError if there is no such file, or if an earlier version of `prepare` wrote it.
    """
    table = _open(path).read(columns=["width", "height"])
    if table.num_columns < 2:
        raise InputError(f"{path}: has no columns `width` and `height`; `dvc repro -f prepare` writes it again")
    return list(zip(table.column("width").to_pylist(), table.column("height").to_pylist(), strict=True))


class Reader:
    """Reads rows of a split by number, from 0. Keeps one row group in memory; threads may share a reader.

    Raises InputError if there is no such file.
    """

    def __init__(self, path: str | Path) -> None:
        self._file = _open(path)
        sizes = [self._file.metadata.row_group(group).num_rows for group in range(self._file.num_row_groups)]
        self._starts = [0, *accumulate(sizes)]
        self._group: tuple[int, list[dict]] = (-1, [])
        self._lock = Lock()

    def rows(self, numbers: Iterable[int]) -> list[Row]:
        """The rows with these numbers, in the order of `numbers`."""
        found = []
        with self._lock:
            for number in numbers:
                group = bisect_right(self._starts, number) - 1
                if self._group[0] != group:
                    # Without pyarrow's threads, which take longer than they save for so little
                    table = self._file.read_row_group(group, columns=["id", "image.bytes", "label"], use_threads=False)
                    self._group = (group, table.to_pylist())
                row = self._group[1][number - self._starts[group]]
                found.append(Row(row["id"], row["image"]["bytes"], row["label"]))
        return found


def _open(path: str | Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; `dvc repro prepare` writes it, `dvc pull` fetches it") from None
    except pa.ArrowInvalid as error:
        raise InputError(f"{path}: is not a parquet file ({error}); `dvc repro -f prepare` writes it again") from None
