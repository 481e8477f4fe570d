"""Looks once at every picture of the splits, and finds those that show little: blank, blurred, dark, of an odd size.

A few lines of numpy, because CleanVision, which was tried first, does not fit: it measures blur as the contrast of
edges and did not flag badges blurred by a fifth of their width; its `low_information`, the entropy of the colours, is
raised by the camera's noise in a picture of a wall; its `odd_size`, where all pictures have one size, is any other by a
pixel.
"""

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image

from vlm.audit.suspects import KINDS, Sample, Suspect
from vlm.config import cores
from vlm.config.events import Emit, Progress
from vlm.data import dataset

_SIDE = 256  # pixels; larger pictures are scaled down to this before anything is measured
THUMBNAIL = 48  # pixels
_AT_ONCE = 64  # picture files in memory

_GRID = 16  # pixels; scaled down to 16 x 16, a picture shows no detail that is smaller than a sixteenth of its side
_PLAIN = 8  # levels of 255: a picture is plain if no channel varies by more when it is scaled down so
_NOISE = 16  # levels of 255: a plain picture is blank unless a channel's standard deviation is larger, as of stripes
_BLURRED = 0.01  # of the variance: a picture is blurred if no more than this is lost when it is scaled down so
_DARK = 64  # levels of 255: a picture is dark if not even its brightest hundredth reaches this
_COMMON = 0.2  # of the pictures: if more are dark, say, that is what the data look like, and no help in a list
_ODD = 4  # a picture's size is odd if it is so many times as large, small, wide or narrow as the median


@dataclass(frozen=True, eq=False)
class Look:
    """What is kept of a picture, 8 kB in all."""

    sample: Sample
    width: int  # pixels
    height: int
    hash: np.ndarray  # (256,), bool: ImageHash's average hash
    thumbnail: np.ndarray  # (48, 48, 3), uint8: RGB, without regard to the picture's shape
    brightest: float  # the 99th percentile of the brightness, 0 to 255
    detail: float  # the fraction of the brightness's variance that is lost when it is scaled down to 16 x 16 pixels
    deviation: float  # the largest standard deviation of a colour channel, in levels of 255

    @property
    def plain(self) -> bool:
        """Whether it has one colour when it is scaled down, as blank pictures and those of a fine pattern have."""
        step = THUMBNAIL // _GRID
        grid = self.thumbnail.reshape(_GRID, step, _GRID, step, 3).mean((1, 3))
        return bool(np.ptp(grid, axis=(0, 1)).max() <= _PLAIN)

    @property
    def blank(self) -> bool:
        return self.plain and self.deviation <= _NOISE


def looks(splits: dict[str, Path], emit: Emit) -> list[Look]:
    """Decodes all pictures, a few at a time. `splits` maps names to files. Raises InputError if a file is missing."""
    total, found = sum(map(dataset.count, splits.values())), []
    emit(Progress(0, total, "picture"))
    with ThreadPoolExecutor(cores.available()) as threads:  # decoding runs outside the interpreter's lock
        for split, path in splits.items():
            for rows in _chunks(path):
                found += threads.map(lambda row, split=split: _look(split, row), rows)
                emit(Progress(len(found), total, "picture"))
    return found


def _chunks(path: Path) -> Iterator[list[dataset.Row]]:
    reader, count = dataset.Reader(path), dataset.count(path)
    for start in range(0, count, _AT_ONCE):
        yield reader.rows(range(start, min(start + _AT_ONCE, count)))


def _look(split: str, row: dataset.Row) -> Look:
    image = Image.open(io.BytesIO(row.image))
    size = image.size
    image.draft("RGB", (_SIDE, _SIDE))  # lets the JPEG decoder leave out detail that scaling would remove
    image = image.convert("RGB")
    image.thumbnail((_SIDE, _SIDE))
    grey = image.convert("L")
    pixels = np.asarray(grey, np.float32)
    coarse = grey.resize((_GRID, _GRID), Image.Resampling.BOX).resize(grey.size, Image.Resampling.BICUBIC)
    # Pictures of a single grey, give or take a level, have no variance to lose.
    detail = float(((pixels - np.asarray(coarse, np.float32)) ** 2).mean() / max(pixels.var(), 1))
    thumbnail = np.asarray(image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))
    hashed = imagehash.average_hash(image, hash_size=16).hash.ravel()
    return Look(
        Sample(split, row.id, row.label),
        *size,
        hashed,
        thumbnail,
        brightest=float(np.percentile(pixels, 99)),
        detail=detail,
        deviation=float(np.std(image, axis=(0, 1)).max()),
    )


def bad_pictures(found: Sequence[Look]) -> tuple[list[Suspect], list[str]]:
    """Pictures that are blank, blurred, dark or of an odd size, and a line for each fault that is too common to list.

    A blank picture has no other fault.
    """
    rest = [look for look in found if not look.blank]
    faults = [
        [Suspect(look.sample, "blank", 1.0, "It shows a single colour.") for look in found if look.blank],
        [
            Suspect(look.sample, "blurred", 1 - look.detail / _BLURRED / 2, "Nothing in it is sharp.")
            for look in rest
            # A smaller picture has no details that could be lost.
            if look.detail <= _BLURRED and min(look.width, look.height) >= 4 * _GRID
        ],
        [
            Suspect(look.sample, "dark", 1 - look.brightest / _DARK / 2, "Not even its brightest parts are bright.")
            for look in rest
            if look.brightest < _DARK
        ],
        _odd_sizes(rest) if rest else [],
    ]
    listed, common = [], []
    for suspects in faults:
        if len(suspects) <= _COMMON * len(found):
            listed += suspects
        else:
            name = KINDS[suspects[0].kind][1]
            common.append(f"{name}: {len(suspects):,} of {len(found):,} are, so none of them is listed")
    return listed, common


def _odd_sizes(found: Sequence[Look]) -> list[Suspect]:
    sizes = np.array([(look.width, look.height) for look in found], float)
    area, shape = np.sqrt(sizes.prod(1)), sizes[:, 0] / sizes[:, 1]
    # How many times each differs from the median, in either direction
    times = np.exp(np.maximum(*(np.abs(np.log(value / np.median(value))) for value in (area, shape))))
    width, height = np.median(sizes, axis=0).astype(int)
    return [
        Suspect(
            look.sample,
            "odd_size",
            float(1 - 1 / ratio),
            f"It has {look.width} x {look.height} pixels; the median picture has {width} x {height}.",
        )
        for look, ratio in zip(found, times, strict=True)
        if ratio > _ODD
    ]
