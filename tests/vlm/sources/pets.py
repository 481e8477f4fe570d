"""Helpers of the tests here: a folder `pets` of random pictures of cats and dogs, and tasks that use it."""

from pathlib import Path

import numpy as np
from PIL import Image

from vlm.config.params import PrepareParams
from vlm.config.task import Task
from vlm.data import dataset
from vlm.sources import preparation

SMALL = PrepareParams(train=12, validation=4, test=8)


def task(source: dict, labels: tuple[str, ...] = ("cat", "dog"), **more) -> Task:
    return Task(name="pets", source=source, labels=labels, prompt={"user": "What is it?"}, **more)


BADGES = task({"badges": {"severity": 0.5, "icons": {"cat": "audi", "dog": "bmw"}}})
FOLDER = task({"folder": "pets"})


def picture(path: str, seed: object, size: tuple[int, int] = (12, 8)) -> Path:
    """Writes a picture of random pixels, height x width, to pets/path."""
    pixels = np.random.default_rng(list(str(seed).encode())).integers(0, 256, (*size, 3), np.uint8)
    file = Path("pets", path)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)
    return file


def pets(count: int = 20) -> None:
    """Writes `count` cats and as many dogs."""
    for i in range(count):
        picture(f"cat/{i:02d}.png", f"cat {i}")
        picture(f"dog/{i:02d}.jpg", f"dog {i}")


def photo(path: str, seed: object, size: tuple[int, int] = (96, 128)) -> Path:
    """Writes a picture with large shapes, height x width, to pets/path: large enough for a perceptual hash."""
    coarse = np.random.default_rng(list(str(seed).encode())).integers(0, 256, (12, 16, 3), np.uint8)
    file = Path("pets", path)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC).save(file)
    return file


def saved_again(path: str, of: str, scale: float = 0.8) -> None:
    """Writes a near duplicate of pets/of to pets/path: smaller, and as a JPEG."""
    image = Image.open(Path("pets", of))
    image.resize((round(image.width * scale), round(image.height * scale))).save(Path("pets", path), quality=70)


def split_of(within: str = "data") -> dict[str, str]:
    """Maps each id to its split."""
    return {id_: split for split in ("train", "validation", "test") for id_ in ids(split, within)}


def prepare(of: Task, rows: PrepareParams = SMALL, seed: int = 3, into: str = "data") -> preparation.Report:
    return preparation.prepare(of, rows, seed, Path(into), lambda event: None)


def ids(split: str, within: str = "data") -> list[str]:
    return dataset.ids_and_labels(Path(within, f"{split}.parquet"))[0]
