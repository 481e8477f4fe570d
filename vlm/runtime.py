"""What a job took and on what, numbers that differ between equal runs and are kept apart from the metrics; memory."""

import json
import platform
import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vlm.errors import InputError
from vlm.events import Emit, Log


def measured(samples: int, seconds: float) -> dict[str, float | int | str]:
    """Samples handled by this run, its seconds and samples a second, this process's peak memory in GB, and the device.

    Peak memory is the GPU's where there is one, else the process's resident set.
    """
    import torch

    if torch.cuda.is_available():
        peak, device = torch.cuda.max_memory_allocated(), torch.cuda.get_device_name()
    else:
        # Linux counts in KiB, macOS in bytes.
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        device = f"CPU, {torch.get_num_threads()} threads, {platform.machine()}"
    return {
        "samples": samples,
        "seconds": round(seconds, 2),
        "samples_per_second": round(samples / seconds, 2) if samples else 0,
        "peak_memory_gb": round(peak / 1e9, 3),
        "device": device,
    }


def together(parts: list[dict]) -> dict[str, float | int | str]:
    """`measured` of a job that was done in parts side by side: it took as long as the longest."""
    samples, seconds = sum(part["samples"] for part in parts), max(part["seconds"] for part in parts)
    return parts[0] | {
        "samples": samples,
        "seconds": seconds,
        "samples_per_second": round(samples / seconds, 2) if samples else 0,
        "peak_memory_gb": max(part["peak_memory_gb"] for part in parts),
    }


def write(path: Path, values: dict) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch raised this for want of memory, of an accelerator or of the machine."""
    import torch

    # torch has an exception of its own for accelerators, and for a CPU only these words.
    return (
        isinstance(error, torch.OutOfMemoryError)
        or "not enough memory" in str(error)
        or "allocate memory" in str(error)
        or "CUDA error: out of memory" in str(error)
        or "ALLOC_FAILED" in str(error)  # of cuBLAS, cuDNN
    )


def in_parts(compute: Callable[[Sequence], Any], items: Sequence, emit: Emit) -> list[Any]:
    """[compute(items)], or, where that does not fit into memory, what `compute` gives for the halves, and so on.

    Raises InputError if not even one of `items`, samples, fits.
    """
    try:
        return [compute(items)]
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    # Here, and not above, for the exception holds the tensors that did not fit.
    if len(items) == 1:
        raise InputError(
            "params.yaml: evaluation.batch_size: not even one sample at a time fits into this device's memory; "
            "image.max_tokens makes samples smaller"
        )
    free_memory()
    half = len(items) // 2
    emit(Log(f"out of memory with {len(items)} samples; going on with {half} at once"))
    return [part for some in (items[:half], items[half:]) for part in in_parts(compute, some, emit)]


def free_memory() -> None:
    """Gives what is no longer used back to the device."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
