"""The pictures beside the page: thumbnails for the gallery, and larger ones for a click.

Equal pictures give equal files, so that DVC's cache holds them once for all reports of the same data.
"""

import io
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from PIL import Image

from vlm.config import cores
from vlm.config.events import Emit, Progress
from vlm.data import dataset

THUMBNAIL = 200  # pixels of the longer side
_THUMBNAIL_BYTES = 7_000  # at most, as far as lower quality gets there: 6,750 of them stay under 50 MB
_LARGE = 768  # pixels of the longer side of what a click shows
_KEPT_BYTES = 64_000  # a file up to this size is shown as it is; a larger one is made smaller
_CHUNK = 64  # pictures in memory at once


def write(folder: Path, wanted: Iterable[tuple[str, int]], emit: Emit) -> dict[tuple[str, int], str]:
    """Writes folder/thumbnails/*.webp and folder/pictures/* for rows of the splits, given as (split, row number).

    Returns the name of each row's file in pictures/; its thumbnail has the same stem. A picture of up to 64 kB is
    copied, a larger one is scaled down to 768 pixels, as WebP.
    """
    for kind in ("thumbnails", "pictures"):
        (folder / kind).mkdir(parents=True)
    rows_of = defaultdict(set)
    for split, row in wanted:
        rows_of[split].add(row)
    total, names = sum(map(len, rows_of.values())), {}
    emit(Progress(0, total, "pictures"))
    with ThreadPoolExecutor(cores.available()) as pool:  # Pillow decodes, scales and encodes without Python's lock
        for split, rows in rows_of.items():
            reader = dataset.Reader(f"data/{split}.parquet")
            for numbers in _chunks(sorted(rows)):
                pictures = [row.image for row in reader.rows(numbers)]
                stems = [f"{split}-{number:06d}" for number in numbers]
                written = pool.map(_write_one, [folder] * len(stems), stems, pictures)
                names |= {(split, number): name for number, name in zip(numbers, written, strict=True)}
                emit(Progress(len(names), total, "pictures"))
    return names


def _chunks(numbers: Iterable[int]) -> Iterator[list[int]]:
    numbers = iter(numbers)
    while chunk := list(islice(numbers, _CHUNK)):
        yield chunk


def _write_one(folder: Path, stem: str, data: bytes) -> str:
    """Writes both files of a picture, and returns the name of the larger one."""
    image = Image.open(io.BytesIO(data))
    kind = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png"}[image.format]  # MPO begins with a JPEG, which browsers show
    kept = len(data) <= _KEPT_BYTES
    # The JPEG decoder skips detail that scaling would lose, up to a factor of 8 per side.
    image.draft("RGB", (2 * (THUMBNAIL if kept else _LARGE),) * 2)
    image = image.convert("RGB")
    (folder / "thumbnails" / f"{stem}.webp").write_bytes(_thumbnail(image))
    name = f"{stem}.{kind if kept else 'webp'}"
    (folder / "pictures" / name).write_bytes(data if kept else _webp(_within(image, _LARGE), 75))
    return name


def _thumbnail(image: Image.Image) -> bytes:
    """A WebP of 200 pixels, with lower quality if it would be large otherwise."""
    small = _within(image, THUMBNAIL)
    for quality in (75, 50, 25):
        data = _webp(small, quality)
        if len(data) <= _THUMBNAIL_BYTES:
            break
    return data


def _within(image: Image.Image, side: int) -> Image.Image:
    """The picture scaled down until its longer side has at most `side` pixels."""
    scale = side / max(image.size)
    if scale >= 1:
        return image
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)


def _webp(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "WEBP", quality=quality, method=3)
    return file.getvalue()
