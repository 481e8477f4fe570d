"""A job's time, memory and device, which differ between equal runs and are therefore kept apart from the metrics."""

import json
import platform
import resource
import sys
from pathlib import Path


def measured(samples: int, seconds: float) -> dict[str, float | int | str]:
    """This run's samples, seconds and samples per second, the peak memory in GB, and the device.

    Peak memory is the GPU's if there is one, else this process's.
    """
    import torch

    if not torch.cuda.is_available():
        return measured_on_cpu(samples, seconds, torch.get_num_threads())
    return _values(samples, seconds, torch.cuda.max_memory_allocated(), torch.cuda.get_device_name())


def measured_on_cpu(samples: int, seconds: float, threads: int) -> dict[str, float | int | str]:
    """The same for work without torch on `threads` threads; peak memory is this process's resident set."""
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB, macOS in bytes
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return _values(samples, seconds, peak, f"CPU, {threads} threads, {platform.machine()}")


def _values(samples: int, seconds: float, peak: int, device: str) -> dict[str, float | int | str]:
    return {
        "samples": samples,
        "seconds": round(seconds, 2),
        "samples_per_second": _rate(samples, seconds),
        "peak_memory_gb": round(peak / 1e9, 3),
        "device": device,
    }


def merged(parts: list[dict]) -> dict[str, float | int | str]:
    """Merges the measurements of containers that worked side by side: the job took as long as the slowest one."""
    samples, seconds = sum(part["samples"] for part in parts), max(part["seconds"] for part in parts)
    slowest = {name: max(part[name] for part in parts) for name in parts[0] if name.endswith("_seconds")}
    return (
        parts[0]
        | slowest
        | {
            "samples": samples,
            "seconds": seconds,
            "samples_per_second": _rate(samples, seconds),
            "peak_memory_gb": max(part["peak_memory_gb"] for part in parts),
        }
    )


def write(path: Path, values: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _rate(samples: int, seconds: float) -> float:
    return round(samples / seconds, 2) if samples and seconds else 0.0
