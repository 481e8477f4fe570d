"""The data sets' files, data/{train,validation,test}.parquet: how they are written and read.

A row is an id (string), an image (struct of bytes and path: `datasets` and the Hub's viewer know it as a picture) and a
label (string). The images are upright 8-bit RGB, JPEG or PNG.
"""

import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vlm.errors import InputError

_ROW_GROUP = 256  # rows; what the writer or a reader holds in memory, encoded

# `datasets` reads its features from the parquet file's metadata.
_STRING = {"dtype": "string", "_type": "Value"}
_FEATURES = {"id": _STRING, "image": {"_type": "Image"}, "label": _STRING}
_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        "label": pa.string(),
    },
    metadata={"huggingface": json.dumps({"info": {"features": _FEATURES}})},
)


@dataclass(frozen=True)
class Row:
    id: str
    image: bytes  # the picture's file
    label: str


@dataclass(frozen=True)
class Batch:
    """Consecutive rows of a split; the images are decoded."""

    ids: list[str]
    images: list[Image.Image]
    labels: list[str]


def write(path: Path, rows: Iterable[Row]) -> None:
    """Writes a split as its rows come. Equal rows give equal files, byte for byte."""
    rows = iter(rows)
    with pq.ParquetWriter(path, _SCHEMA, compression="none", use_dictionary=["label"]) as writer:
        while group := list(islice(rows, _ROW_GROUP)):
            table = [{"id": row.id, "image": {"bytes": row.image, "path": row.id}, "label": row.label} for row in group]
            writer.write_table(pa.Table.from_pylist(table, schema=_SCHEMA))


def count(path: str | Path) -> int:
    """Rows of a split. Raises InputError if there is no such file."""
    return _open(path).metadata.num_rows


def ids_and_labels(path: str | Path) -> tuple[list[str], list[str]]:
    """The ids and the labels of a split, in order. Raises InputError if there is no such file."""
    table = _open(path).read(columns=["id", "label"])
    return table.column("id").to_pylist(), table.column("label").to_pylist()


def iter_batches(path: str | Path, batch_size: int, skip: int = 0) -> Iterator[Batch]:
    """A split's rows from row `skip` on, in order; the last batch may be smaller. Holds one row group and one batch.

    Raises InputError if there is no such file.
    """
    rows = _iter_rows(_open(path), skip)
    while batch := list(islice(rows, batch_size)):
        images = [Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB") for row in batch]
        yield Batch([row["id"] for row in batch], images, [row["label"] for row in batch])


def _iter_rows(file: pq.ParquetFile, skip: int) -> Iterator[dict]:
    for group in range(file.num_row_groups):
        size = file.metadata.row_group(group).num_rows
        if skip < size:
            yield from file.read_row_group(group).slice(skip).to_pylist()
        skip = max(0, skip - size)


def _open(path: str | Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; `dvc repro prepare` or `dvc pull` brings it") from None
    except pa.ArrowInvalid as error:
        raise InputError(f"{path}: is no parquet file ({error}); `dvc repro -f prepare` writes it anew") from None
