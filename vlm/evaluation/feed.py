"""Prepares batches ahead of the model. Imported only by a running job, because it imports torch."""

import ctypes
import multiprocessing
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.utils.data import DataLoader

from vlm.config import cores

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_AHEAD = 2  # batches that the thread prepares in advance
_SHARED = Path("/dev/shm")  # through which worker processes on Linux hand over their batches
# Parameters of glibc's mallopt (malloc.h), and the number of allocations to map directly
_TRIM_THRESHOLD, _MMAP_MAX, _NEVER = -1, -4, 2**31 - 1

Load = Callable[[Sequence[int]], dict]


def feed(
    load: Load, batches: Sequence[Sequence[int]], model: "PreTrainedModel", workers: int | None = None
) -> Iterator[tuple[Sequence[int], dict[str, torch.Tensor]]]:
    """Yields (batch, load(batch)) in order, on the CPU, with the next batches prepared in the background.

    For a model on a GPU, by worker processes, one per core (or `workers`), so that neither preprocessing nor Python's
    global lock delays the GPU. For a model on a CPU, by one thread, because the model needs the cores.
    """
    if workers is None:
        workers = cores.available() if model.device.type == "cuda" else 0
    count = min(workers, len(batches), _most_in_shared_memory(load, batches, model)) if workers and batches else 0
    prepared = _by_processes(load, batches, count, model) if count else _by_thread(load, batches)
    yield from zip(batches, prepared, strict=True)


def _most_in_shared_memory(load: Load, batches: Sequence[Sequence[int]], model: "PreTrainedModel") -> int:
    """The number of workers whose batches fit into half of the free shared memory, which is 64 MB in many containers.

    A worker that finds it full would die of a bus error. The first batch is taken for the largest.
    """
    if not _SHARED.exists():
        return len(batches)
    one = _Batches(load, [batches[0][:1]], model.dtype)[0]
    of_batch = len(batches[0]) * sum(value.nbytes for value in one.values())
    return int(shutil.disk_usage(_SHARED).free / 2 / of_batch)


def _by_processes(load: Load, batches: Sequence[Sequence[int]], count: int, model: "PreTrainedModel") -> Iterator[dict]:
    # Forked workers start at once; others import torch and transformers first.
    fork = sys.platform == "linux" and "fork" in multiprocessing.get_all_start_methods()
    return iter(
        DataLoader(
            _Batches(load, batches, model.dtype),
            batch_size=None,  # an item is a whole batch
            num_workers=count,
            prefetch_factor=1,
            pin_memory=model.device.type == "cuda",
            multiprocessing_context="fork" if fork else None,
            worker_init_fn=_keep_memory,
        )
    )


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


class _Batches(torch.utils.data.Dataset):
    """The inputs of every batch, with pixels in the model's dtype, which halves what is copied."""

    def __init__(self, load: Load, batches: Sequence[Sequence[int]], dtype: torch.dtype) -> None:
        self._load = load
        self._batches = batches
        self._dtype = dtype

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        inputs = self._load(self._batches[index])
        return {name: value.to(self._dtype) if value.is_floating_point() else value for name, value in inputs.items()}


def _keep_memory(worker: int) -> None:
    """Makes this worker process keep the memory that it frees, for its next batch.

    A batch of pictures takes more than 32 MB, and by default glibc returns such a block to the kernel at once and gets
    it back, page by page, for the next batch. benchmarks/feed.py measures what that costs.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # musl has none
            libc.mallopt(_MMAP_MAX, 0)
            libc.mallopt(_TRIM_THRESHOLD, _NEVER)
