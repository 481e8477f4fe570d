"""The training samples of an epoch, their order and augmentation, all of which depend only on the seed and the epoch.

An item is one sample in one epoch, as the number epoch * samples + row, so that a resumed run or a worker process gets
the same pictures without any state.
"""

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from datasets import Dataset

Balance = Literal["none", "sqrt", "uniform"]
Augment = Literal["none", "light", "strong"]

# A sample whose label occurs n times is drawn with a probability proportional to n ** power.
_POWER = {"sqrt": -0.5, "uniform": -1.0}


class EpochSampler:
    """The items of an epoch: all rows in random order, or as many draws as there are rows, weighted by label.

    `none` draws every row once. `uniform` draws every label equally often, `sqrt` in proportion to the square root of
    its number of rows (D. Mahajan et al., ECCV 2018), both with replacement.
    """

    def __init__(self, labels: Sequence[str], balance: Balance, seed: int) -> None:
        self._seed = seed
        self._rows = len(labels)
        self._weights = None
        if balance != "none":
            counts = Counter(labels)
            weights = np.array([counts[label] ** _POWER[balance] for label in labels])
            self._weights = weights / weights.sum()
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self._rows

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self._seed, self.epoch])
        if self._weights is None:
            rows = rng.permutation(self._rows)
        else:
            rows = rng.choice(self._rows, self._rows, p=self._weights)
        yield from (self.epoch * self._rows + rows).tolist()


class AugmentedRows:
    """A split's rows by item; each item's picture is augmented with its own random stream."""

    def __init__(self, rows: "Dataset", augment: Augment, flip: bool, seed: int) -> None:
        self._rows = rows
        self._seed = seed
        self._transform = transform(augment, flip)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, item: int) -> dict:
        import torch

        row = self._rows[item % len(self)]
        if self._transform is None:
            return row
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(np.random.default_rng([self._seed, 1, item]).integers(2**63)))
            return {**row, "image": self._transform(row["image"].convert("RGB"))}


def transform(augment: Augment, flip: bool) -> "object | None":
    """A torchvision transform for PIL pictures, None for `none`; it mirrors pictures only if `flip` is true."""
    if augment == "none":
        return None
    import torch
    from torchvision.transforms import v2

    strong = augment == "strong"
    smallest = 0.6 if strong else 0.85  # the smallest fraction of the area that a crop keeps

    def crop(image: Image.Image) -> Image.Image:
        top, left, height, width = v2.RandomResizedCrop.get_params(image, (smallest, 1.0), (0.85, 1.18))
        return image.crop((left, top, left + width, top + height))  # the processor resizes

    def jpeg(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=int(torch.randint(30, 90, ())))
        return Image.open(buffer).convert("RGB")

    jitter = 0.4 if strong else 0.15
    steps = [v2.Lambda(crop), *([v2.RandomHorizontalFlip()] if flip else [])]
    steps.append(v2.ColorJitter(brightness=jitter, contrast=jitter, saturation=jitter, hue=jitter / 8))
    if strong:
        steps.append(v2.RandomApply([v2.GaussianBlur(5, (0.1, 2.0))], p=0.3))
        steps.append(v2.RandomApply([v2.Lambda(jpeg)], p=0.3))
    return v2.Compose(steps)
