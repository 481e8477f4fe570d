"""The training samples of an epoch, their order and augmentation, all of which depend only on the seed and the epoch.

An item is one sample in one epoch, as the number epoch * samples + row, so that a resumed run or a worker process gets
the same pictures without any state.
"""

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from datasets import Dataset

Balance = Literal["none", "sqrt", "uniform"]
Augment = Literal["none", "light", "strong"]

# A sample whose label occurs n times is drawn with a probability proportional to n ** power.
_POWER = {"sqrt": -0.5, "uniform": -1.0}

# Samples are sorted by length within as many batches as this: few enough to leave the order of an epoch mostly random.
_WINDOW = 16


class EpochSampler:
    """The items of an epoch: all rows in random order, or as many draws as there are rows, weighted by label.

    `none` draws every row once. `uniform` draws every label equally often, `sqrt` in proportion to the square root of
    its number of rows (D. Mahajan et al., ECCV 2018), both with replacement.

    If prompts differ in length, the samples of a batch get similar lengths, because a batch is padded to its longest.
    """

    def __init__(
        self, labels: Sequence[str], balance: Balance, seed: int, batch_size: int, lengths: Sequence[int]
    ) -> None:
        """`batch_size` is that of an optimizer step; `lengths` are the rows' prompt lengths in tokens."""
        self._seed = seed
        self._rows = len(labels)
        self._batch_size = batch_size
        self._lengths = np.array(lengths) if len(set(lengths)) > 1 else None
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
        if self._lengths is not None:
            rows = self._grouped(rows, self._lengths, rng)
        yield from (self.epoch * self._rows + rows).tolist()

    def _grouped(self, rows: np.ndarray, lengths: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Sorts each window of `rows` by length, cuts it into batches, and shuffles the window's batches.

        The batches are those of optimizer steps, so that the order depends neither on the micro-batch nor on the number
        of processes. Each is sorted, so that micro-batches, and what several processes do at once, are of similar
        length, too. An incomplete batch stays the last one and consists of the shortest samples of its window.
        """
        size = self._batch_size
        complete = max(1, len(rows) // size)
        batches: list[np.ndarray] = []
        for first in range(0, complete, _WINDOW):
            count = min(_WINDOW, complete - first)
            end = (first + count) * size if first + count < complete else len(rows)
            window = rows[first * size : end]
            window = window[np.argsort(-lengths[window], kind="stable")]
            cut = [window[start : start + size] for start in range(0, len(window), size)]
            batches += [cut[i] for i in rng.permutation(count)] + cut[count:]
        if self.epoch == 0:
            # The longest batch first: if it does not fit into memory, we find out at once.
            longest = max(range(complete), key=lambda i: lengths[batches[i][0]])
            batches.insert(0, batches.pop(longest))
        return np.concatenate(batches)


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
    """A torchvision transform for PIL pictures, None for `none`; it mirrors pictures only if `flip` is true.

    It can be pickled, which data loader workers need if they are not forked.
    """
    if augment == "none":
        return None
    from torchvision.transforms import v2

    strong = augment == "strong"
    smallest = 0.6 if strong else 0.85  # the smallest fraction of the area that a crop keeps
    jitter = 0.4 if strong else 0.15
    steps = [v2.Lambda(partial(_crop, smallest=smallest)), *([v2.RandomHorizontalFlip()] if flip else [])]
    steps.append(v2.ColorJitter(brightness=jitter, contrast=jitter, saturation=jitter, hue=jitter / 8))
    if strong:
        steps.append(v2.RandomApply([v2.GaussianBlur(5, (0.1, 2.0))], p=0.3))
        steps.append(v2.RandomApply([v2.Lambda(_jpeg)], p=0.3))
    return v2.Compose(steps)


def _crop(image: Image.Image, smallest: float) -> Image.Image:
    """A random part of at least the fraction `smallest` of the picture's area; the processor resizes it."""
    from torchvision.transforms import v2

    top, left, height, width = v2.RandomResizedCrop.get_params(image, (smallest, 1.0), (0.85, 1.18))
    return image.crop((left, top, left + width, top + height))


def _jpeg(image: Image.Image) -> Image.Image:
    """The picture after a JPEG compression of random quality."""
    import torch

    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(torch.randint(30, 90, ())))
    return Image.open(buffer).convert("RGB")
