"""The CPU cores that this process may use, and what torch's threads do while they wait for work."""

import os
from pathlib import Path

# How often a waiting thread of libgomp looks for work before it sleeps. By default it looks 300,000 times, about a
# millisecond, and keeps the core from whatever else runs on the machine. benchmarks/busy.py measures the choice.
SPIN_COUNT = 3000
_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # microseconds of CPU time in a period of so many, or "max" (Linux, cgroup v2)


def available(quota: Path = _QUOTA) -> int:
    """The number of cores: those in this process's CPU affinity, or fewer if its container has a smaller CPU quota."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        used, period = quota.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return affinity
    return affinity if used == "max" else max(1, min(affinity, int(used) // int(period)))


def share() -> None:
    """Sets up torch's threads for a machine that does other work too. Has an effect only before torch is loaded."""
    os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))
    cores = available()
    if cores < (os.cpu_count() or 1):  # torch knows neither of quotas nor, in some builds, of the affinity
        os.environ.setdefault("OMP_NUM_THREADS", str(cores))
