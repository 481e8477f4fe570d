"""Groups samples into batches, and prepares the next batches while the model works."""

import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from PIL import Image

from vlm.config.task import Task
from vlm.data import dataset
from vlm.models import loading

if TYPE_CHECKING:
    from transformers import BatchFeature, ProcessorMixin

T = TypeVar("T")
U = TypeVar("U")

_AHEAD = 2  # batches that are prepared in advance


def prompt_lengths(data: str, processor: "ProcessorMixin", task: Task) -> list[int]:
    """The number of tokens in every sample's prompt, including the picture's, in the order of the split.

    It depends only on the picture's size, so pictures are not decoded: one blank picture stands for all of a size.
    """
    of_size: dict[tuple[int, int], int] = {}
    lengths = []
    for size in dataset.image_sizes(data):
        if size not in of_size:
            of_size[size] = loading.encode(processor, task, [Image.new("RGB", size)])["input_ids"].shape[1]
        lengths.append(of_size[size])
    return lengths


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
    """Reads, decodes and preprocesses chosen rows of a split."""

    def __init__(self, data: str, processor: "ProcessorMixin", task: Task) -> None:
        self.reader = dataset.Reader(data)
        self._processor = processor
        self._task = task
        self._decoders = ThreadPoolExecutor(min(8, os.cpu_count() or 1))

    def __call__(self, rows: Sequence[int]) -> "BatchFeature":
        """The model's inputs for `rows`, left-padded, on the CPU."""
        files = [row.image for row in self.reader.rows(rows)]
        return loading.encode(self._processor, self._task, list(self._decoders.map(decoded, files)))


def ahead(function: Callable[[T], U], items: Iterable[T]) -> Iterator[tuple[T, U]]:
    """Yields (item, function(item)) in order, computed in a separate thread up to two items ahead of the caller."""
    import torch

    waiting: deque = deque()
    # One torch thread, because a model on the CPU needs the other cores.
    with ThreadPoolExecutor(1, initializer=lambda: torch.set_num_threads(1)) as worker:
        for item in items:
            waiting.append((item, worker.submit(function, item)))
            if len(waiting) > _AHEAD:
                item, future = waiting.popleft()
                yield item, future.result()
        for item, future in waiting:
            yield item, future.result()


def decoded(file: bytes) -> Image.Image:
    """Decodes a stored picture, which is upright 8-bit RGB."""
    return Image.open(io.BytesIO(file)).convert("RGB")
