"""Prepares batches ahead of the model. Imported only by a running job, because it imports torch."""

import ctypes
import itertools
import math
import multiprocessing
import os
import shutil
import sys
from collections import defaultdict, deque
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

_PIXELS = "pixel_values"
_ALIGNED = 16  # bytes: a tensor's numbers have to lie at multiples of their size
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
    prepared = _Batches(load, batches, model.dtype)
    loader = DataLoader(
        prepared,
        batch_size=None,  # an item is a whole batch
        num_workers=count,
        prefetch_factor=1,
        pin_memory=model.device.type == "cuda",
        multiprocessing_context=start_method(),
        worker_init_fn=_keep_memory,
    )
    received = iter(loader)
    try:
        for packed in received:
            yield packed.inputs()
    finally:
        del received  # ends the workers, and torch's thread that receives from them, so that no more memory arrives
        _received.pop(prepared.feed, None)


class _Batches(torch.utils.data.Dataset):
    """The inputs of every batch, with pixels in the model's dtype or as bytes.

    A worker process writes them into shared memory that is used again and again: it starts on a batch when the last but
    one of its batches is no longer needed. The kernel takes longer to provide new memory than it takes to fill it.
    """

    def __init__(self, load: Load, batches: Sequence[Sequence[int]], dtype: torch.dtype) -> None:
        self.feed = next(_feeds)
        self._load = load
        self._batches = batches
        self._dtype = dtype
        self._pieces = deque([_Piece(0), _Piece(1)])

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> "_Filled":
        self._pieces.rotate()
        piece = self._pieces[0]
        others = dict(self._load(self._batches[index], piece.first))
        inputs, pixels = {}, others.pop(_PIXELS, None)
        if pixels is not None:
            if pixels.data_ptr() != piece.memory.data_ptr():
                dtype = self._dtype if pixels.is_floating_point() else pixels.dtype
                pixels = piece.first(pixels.shape, dtype).copy_(pixels)
            inputs[_PIXELS] = pixels
        inputs.update(others)
        parts = [(name, value.dtype, value.shape) for name, value in inputs.items()]
        *starts, size = _places(parts)
        piece.grow(size)
        packed = _Packed(piece.memory[:size], parts)
        for (name, target), start in zip(packed.inputs().items(), starts, strict=True):
            if start or name != _PIXELS:
                target.copy_(inputs[name])
        return _Filled(self.feed, piece, packed)


_Parts = list[tuple[str, torch.dtype, torch.Size]]  # name, dtype and shape of each input


def _places(parts: _Parts) -> list[int]:
    """Where the inputs begin, in bytes, when they lie one after the other, and where the last ends."""
    sizes = [math.prod(shape) * dtype.itemsize for _, dtype, shape in parts]
    return [0, *itertools.accumulate(-(-size // _ALIGNED) * _ALIGNED for size in sizes)]


@dataclass(frozen=True)
class _Packed:
    """A batch's inputs in one tensor of bytes, one after the other."""

    memory: torch.Tensor
    parts: _Parts

    def inputs(self) -> dict[str, torch.Tensor]:
        """Views of the memory."""
        starts, found = _places(self.parts), {}
        for (name, dtype, shape), start in zip(self.parts, starts, strict=False):
            size = math.prod(shape) * dtype.itemsize
            found[name] = self.memory[start : start + size].view(dtype).view(shape)
        return found

    def pin_memory(self) -> "_Packed":
        """Called by torch's data loader."""
        return _Packed(self.memory.pin_memory(), self.parts)


class _Piece:
    """A worker's piece of shared memory, which grows when it has to."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.memory = torch.empty(0, dtype=torch.uint8)
        self.sent = False  # whether the model's process has it

    def grow(self, size: int) -> None:
        """Makes it hold `size` bytes; what it holds stays."""
        if len(self.memory) < size:
            before = self.memory
            self.memory = torch.empty(size, dtype=torch.uint8).share_memory_()
            self.memory[: len(before)] = before
            self.sent = False

    def first(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Its beginning as a tensor, whatever it holds, with some room after it for smaller inputs."""
        size = math.prod(shape) * dtype.itemsize
        if len(self.memory) < size:
            self.grow(size + size // 8)
        return self.memory[:size].view(dtype).view(shape)


@dataclass(frozen=True)
class _Filled:
    """A batch in a worker's piece of memory; in the model's process it is a `_Packed`.

    The memory itself is handed over only once, because that takes a connection between the two processes: with small
    pictures a seventh of the workers' time (docs/log.md). Later batches in it say which piece they are in.
    """

    feed: int
    piece: _Piece
    packed: _Packed

    def __reduce__(self) -> tuple:
        memory = None if self.piece.sent else self.piece.memory
        self.piece.sent = True
        name = os.getpid(), self.piece.number
        return _receive, (self.feed, name, memory, len(self.packed.memory), self.packed.parts)


_feeds = itertools.count()
# In the model's process, by the number of the feed: the pieces of its workers' memory, by process and number
_received: dict[int, dict[tuple[int, int], torch.Tensor]] = defaultdict(dict)


def _receive(feed: int, name: tuple[int, int], memory: torch.Tensor | None, size: int, parts: _Parts) -> _Packed:
    pieces = _received[feed]
    if memory is not None:
        pieces[name] = memory
    return _Packed(pieces[name][:size], parts)


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
