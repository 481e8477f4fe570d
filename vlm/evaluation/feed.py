"""Prepares batches ahead of the model. Imported only by a running job, because it imports torch."""

import ctypes
import math
import multiprocessing
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import psutil
import torch
from torch.utils.data import DataLoader

from vlm.config import cores
from vlm.config.events import Emit, Log
from vlm.models import encoding, memory, patches

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T = TypeVar("T")

_AHEAD = 2  # batches that the thread prepares in advance
_SHARED = Path("/dev/shm")  # through which worker processes on Linux hand over their batches
# A worker's memory, measured with batches of 13 to 350 MB: four copies of a batch, two of them shared, and what the
# processor works in. Batches of LFM2-VL's bytes take a copy less.
_COPIES, _WORKING = 4, 256 * 2**20
# Parameters of glibc's mallopt (malloc.h), and the largest value
_TRIM_THRESHOLD, _MMAP_MAX, _NEVER = -1, -4, 2**31 - 1


class Load(Protocol):
    """Reads and preprocesses rows of a split: vlm.evaluation.batching.Loader, or cached features."""

    def __call__(self, rows: Sequence[int], empty: patches.Empty | None = None) -> "Mapping[str, torch.Tensor]":
        """The inputs for `rows`; the pixels may be in a tensor that `empty` makes, which is called like torch.empty."""

    def lengths(self, rows: Sequence[int]) -> list[int]: ...


def feed(
    load: Load,
    batches: Sequence[Sequence[int]],
    model: "PreTrainedModel",
    emit: Emit = lambda event: None,
    workers: int | None = None,
) -> "Iterator[tuple[Sequence[int], Mapping[str, torch.Tensor]]]":
    """Yields (batch, load(batch)) in order, on the CPU, with the next batches prepared in the background.

    For a model on a GPU, by worker processes, one per core (or `workers`), so that neither preprocessing nor Python's
    global lock delays the GPU. For a model on a CPU, by one thread, because the model needs the cores. A batch's
    tensors are valid until the next batch is requested.
    """
    if workers is None:
        workers = cores.available() if model.device.type == "cuda" else 0
    wanted = min(workers, len(batches))
    if wanted:
        rows = [row for batch in batches for row in batch]
        lengths = load.lengths(rows)
        longest = load([rows[lengths.index(max(lengths))]])
        size = max(map(len, batches)) * sum(value.nbytes for value in longest.values())
        workers = most_workers(wanted, size, emit)
    prepared = _by_processes(load, batches, workers, model) if wanted and workers else _by_thread(load, batches)
    yield from zip(batches, prepared, strict=True)


def computed(
    compute: "Callable[[Sequence[int], dict[str, torch.Tensor]], T]",
    load: Load,
    batches: Sequence[Sequence[int]],
    model: "PreTrainedModel",
    emit: Emit,
) -> Iterator[tuple[Sequence[int], list[T]]]:
    """Yields (batch, results) in order: compute(rows, their inputs on the model's device) for the batch or its parts.

    A batch that does not fit into memory is split into parts that do, and so are the batches after it. Raises
    InputError if not even one sample fits.
    """
    at_once = max(map(len, batches), default=1)
    following = 0
    while following < len(batches):
        parts = [
            batch[start : start + at_once] for batch in batches[following:] for start in range(0, len(batch), at_once)
        ]
        results: list[T] = []
        done = too_many = 0
        for rows, inputs in feed(load, parts, model, emit):
            try:
                results.append(compute(rows, encoding.to_device(inputs, model)))
            except RuntimeError as error:
                if not memory.is_out_of_memory(error):
                    raise
                too_many = len(rows)
            if too_many:
                break
            done += len(rows)
            if done == len(batches[following]):
                yield batches[following], results
                results, done, following = [], 0, following + 1
        if too_many:
            at_once = memory.halved(too_many, emit)


def most_workers(wanted: int, size: int, emit: Emit) -> int:
    """The number of worker processes, at most `wanted`, for whose batches of `size` bytes there is enough memory.

    They get half of the free memory, and half of what is free of shared memory: in many containers that is 64 MB, and a
    worker that finds it full dies of a bus error.
    """
    room = {"memory": psutil.virtual_memory().available / 2 / (_COPIES * size + _WORKING)}
    if _SHARED.exists():
        room[str(_SHARED)] = shutil.disk_usage(_SHARED).free / 2 / (2 * size)
    name = min(room, key=lambda name: room[name])
    count = min(wanted, int(room[name]))
    if count < min(wanted, 2):
        remedy = "; give the container more, as with docker's --shm-size=8g" if name == str(_SHARED) else ""
        emit(
            Log(
                f"warning: {name} has room for {count} processes that prepare pictures, of {wanted}; the GPU may have "
                f"to wait{remedy}"
            )
        )
    return count


def start_method() -> str | None:
    """How to start worker processes: forked ones start at once, others import torch and transformers first."""
    return "fork" if sys.platform == "linux" and "fork" in multiprocessing.get_all_start_methods() else None


def _by_processes(load: Load, batches: Sequence[Sequence[int]], count: int, model: "PreTrainedModel") -> Iterator[dict]:
    loader = DataLoader(
        _Batches(load, batches, model.dtype),
        batch_size=None,  # an item is a whole batch
        num_workers=count,
        prefetch_factor=1,
        pin_memory=model.device.type == "cuda",
        multiprocessing_context=start_method(),
        worker_init_fn=_keep_memory,
    )
    return (packed.inputs() for packed in loader)


@dataclass(frozen=True)
class _Packed:
    """A batch's inputs in two tensors, because a worker process hands over each tensor through a connection of its own,
    which takes 0.3 ms (docs/log.md)."""

    pixels: torch.Tensor | None
    others: torch.Tensor  # their bytes, one after the other
    parts: list[tuple[str, torch.dtype, torch.Size]]  # name, dtype and shape of each of the others

    @classmethod
    def of(
        cls, pixels: torch.Tensor | None, others: "Mapping[str, torch.Tensor]", empty: patches.Empty = torch.empty
    ) -> "_Packed":
        """`empty` makes the tensor for the others."""
        # The largest numbers first, so that all of them are aligned
        ordered = sorted(others.items(), key=lambda item: -item[1].itemsize)
        memory = empty((sum(value.nbytes for value in others.values()),), dtype=torch.uint8)
        if ordered:
            torch.cat([value.contiguous().view(-1).view(torch.uint8) for _, value in ordered], out=memory)
        return cls(pixels, memory, [(name, value.dtype, value.shape) for name, value in ordered])

    def inputs(self) -> dict[str, torch.Tensor]:
        found = {} if self.pixels is None else {"pixel_values": self.pixels}
        sizes = [math.prod(shape) * dtype.itemsize for _, dtype, shape in self.parts]
        for (name, dtype, shape), value in zip(self.parts, self.others.split(sizes), strict=True):
            found[name] = value.view(dtype).view(shape)
        return found

    def pin_memory(self) -> "_Packed":
        """Called by torch's data loader."""
        pixels = None if self.pixels is None else self.pixels.pin_memory()
        return _Packed(pixels, self.others.pin_memory(), self.parts)


class _Batches(torch.utils.data.Dataset):
    """The inputs of every batch, with pixels in the model's dtype or as bytes.

    A worker process writes them into shared memory that is used again and again: it starts on a batch when the last but
    one of its batches is no longer needed. The kernel takes longer to provide new memory than it takes to fill it.
    """

    def __init__(self, load: Load, batches: Sequence[Sequence[int]], dtype: torch.dtype) -> None:
        self._load = load
        self._batches = batches
        self._dtype = dtype
        self._pixels, self._others = _Memory(), _Memory()

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> _Packed:
        self._pixels.next()
        self._others.next()
        others = dict(self._load(self._batches[index], self._pixels.empty))
        pixels = others.pop("pixel_values", None)
        if pixels is not None and not self._pixels.holds(pixels):
            dtype = self._dtype if pixels.is_floating_point() else pixels.dtype
            pixels = self._pixels.empty(pixels.shape, dtype).copy_(pixels)
        return _Packed.of(pixels, others, self._others.empty)


class _Memory:
    """Two pieces of shared memory that hold a tensor in turn, and grow when it is larger than those before it."""

    def __init__(self) -> None:
        self._pieces = deque([torch.empty(0, dtype=torch.uint8)] * 2)

    def next(self) -> None:
        self._pieces.rotate()

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """The present piece as a tensor, whatever it holds."""
        size = math.prod(shape) * dtype.itemsize
        if len(self._pieces[0]) < size:
            self._pieces[0] = torch.empty(size, dtype=torch.uint8).share_memory_()
        return self._pieces[0][:size].view(dtype).view(shape)

    def holds(self, value: torch.Tensor) -> bool:
        return value.data_ptr() == self._pieces[0].data_ptr()


def _keep_memory(worker: int) -> None:
    """Makes this worker process keep the memory that it frees, for its next picture.

    By default glibc returns the megabytes of a resized picture, or of a batch, to the kernel and gets them back, page
    by page, for the next one. Without this, two workers prepare a fifth fewer pictures with tiles (docs/log.md).
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # musl has none
            libc.mallopt(_MMAP_MAX, 0)
            libc.mallopt(_TRIM_THRESHOLD, _NEVER)


def _by_thread(load: Load, batches: Sequence[Sequence[int]]) -> Iterator[dict]:
    waiting: deque = deque()
    # One torch thread, because the model needs the other cores.
    with ThreadPoolExecutor(1, initializer=lambda: torch.set_num_threads(1)) as thread:
        for batch in batches:
            waiting.append(thread.submit(load, batch))
            if len(waiting) > _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
