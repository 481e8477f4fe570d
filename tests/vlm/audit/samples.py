"""Small splits for the tests of the audit, in the current folder."""

import io
from pathlib import Path

from PIL import Image

from vlm.audit.audit import SPLITS
from vlm.data import dataset


def write_splits(test=(), validation=(), train=()) -> dict[str, Path]:
    """Writes data/*.parquet in the current folder; each split is a list of (id, label, picture file)."""
    Path("data").mkdir(exist_ok=True)
    for split, rows in (("test", test), ("validation", validation), ("train", train)):
        dataset.write(SPLITS[split], (dataset.Row(id_, picture, label) for id_, label, picture in rows))
    return SPLITS


def opened(picture: bytes) -> Image.Image:
    return Image.open(io.BytesIO(picture)).convert("RGB")


def encoded(image: Image.Image, form: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()
