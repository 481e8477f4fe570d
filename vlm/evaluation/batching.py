"""Groups samples into batches; reads and preprocesses the samples of a batch."""

import io
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from PIL import Image

from vlm.config.task import Task
from vlm.data import dataset
from vlm.models import encoding, patches

if TYPE_CHECKING:
    import torch
    from transformers import BatchFeature, ProcessorMixin


def plan(lengths: Sequence[int], batch_size: int, equal_lengths: bool = False) -> list[list[int]]:
    """Groups row numbers into batches of samples of similar length (equal, with `equal_lengths`), the longest first.

    It depends only on its arguments, because which samples share a batch affects the last digits of a result. The
    longest come first so that a batch that does not fit into memory is found at once.
    """
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):  # sorted is stable
        full = not batches or len(batches[-1]) == batch_size
        if full or (equal_lengths and lengths[batches[-1][0]] != lengths[row]):
            batches.append([])
        batches[-1].append(row)
    return batches


class Loader:
    """Reads, decodes and preprocesses chosen rows of a split. It can be pickled, for worker processes."""

    def __init__(
        self,
        data: str,
        processor: "ProcessorMixin",
        task: Task,
        dtype: "torch.dtype | None" = None,
    ) -> None:
        """See vlm.models.encoding.encode for `dtype`. Raises InputError if there is no such file."""
        dataset.count(data)
        self._dtype = dtype
        self._data = data
        self._processor = processor
        self._task = task
        self._lengths: dict[tuple[int, int], int] = {}  # by width and height: the prompt's tokens

    def __call__(self, rows: Sequence[int], empty: patches.Empty | None = None) -> "BatchFeature":
        """The model's inputs for `rows`, left-padded, on the CPU; see vlm.models.encoding.encode for `empty`."""
        pictures = [decoded(row.image) for row in self.reader.rows(rows)]
        return encoding.encode(self._processor, self._task, pictures, self._dtype, empty)

    @cached_property
    def reader(self) -> dataset.Reader:
        return dataset.Reader(self._data)

    @cached_property
    def _sizes(self) -> list[tuple[int, int]]:
        return dataset.image_sizes(self._data)

    def lengths(self, rows: Sequence[int] | None = None) -> list[int]:
        """The number of tokens in the prompts of `rows` (by default all), including the picture's.

        It depends only on the pictures' sizes, so no picture is read.
        """
        sizes = self._sizes if rows is None else [self._sizes[row] for row in rows]
        self._lengths.update(encoding.lengths(self._processor, self._task, set(sizes) - self._lengths.keys()))
        return [self._lengths[size] for size in sizes]

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "reader"}


def decoded(file: bytes) -> Image.Image:
    """Decodes a stored picture, which is upright 8-bit RGB."""
    image = Image.open(io.BytesIO(file))
    image.load()
    return image
