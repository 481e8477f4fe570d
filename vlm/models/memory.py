"""Recognises out-of-memory errors, and continues with smaller batches."""

from collections.abc import Callable, Sequence
from typing import Any

from vlm.config.errors import InputError
from vlm.config.events import Emit, Log

# Messages of torch, cuBLAS, cuDNN, NCCL and Triton, in lower case. torch has an exception of its own only for memory of
# accelerators.
_OUT_OF_MEMORY = (
    "not enough memory",
    "allocate memory",
    "cuda error: out of memory",
    "cuda driver error: out of memory",
    "cuda failure 2 'out of memory'",  # NCCL
    "triton error [cuda]: out of memory",
    "alloc_failed",
)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error was raised because an accelerator or the machine has too little memory."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error).lower() for text in _OUT_OF_MEMORY)


def in_parts(compute: Callable[[Sequence], Any], items: Sequence, emit: Emit) -> list[Any]:
    """Returns [compute(items)] or, if that does not fit into memory, the results of its halves, and so on.

    Raises InputError if not even one of `items`, the samples of a batch, fits.
    """
    try:
        return [compute(items)]
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    # Outside the except block, where the exception would keep the tensors that did not fit alive.
    half = halved(len(items), emit)
    return [part for some in (items[:half], items[half:]) for part in in_parts(compute, some, emit)]


def halved(count: int, emit: Emit) -> int:
    """Half of `count` samples, which did not fit into memory. Raises InputError if it was one sample."""
    if count == 1:
        raise InputError(
            "params.yaml: image.max_tokens: not even one sample fits into this device's memory; a lower value makes "
            "samples smaller"
        )
    free_memory()
    emit(Log(f"out of memory with {count} samples; continuing with {count // 2} at a time"))
    return count // 2


def free_memory() -> None:
    """Returns unused memory to the device."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
