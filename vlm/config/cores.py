"""The CPU cores that this process may use, and what torch's threads do while they wait for work."""

import os
from contextlib import suppress
from pathlib import Path

# How often a waiting thread of libgomp looks for work before it sleeps. By default it looks 300,000 times, about a
# millisecond, and keeps the core from other programs. benchmarks/busy.py measures what both cost.
SPIN_COUNT = 1000
# An environment variable with the number of cores that this process and its children may use. A quota and the affinity
# do not say how cores are divided among the processes of a job, nor how many a container has reserved.
LIMIT = "VLM_CORES"
THREADS = "OMP_NUM_THREADS"
# Whether the user has set the number of threads: it then is that of every process. Read before `share` may set it.
THREADS_ARE_SET = THREADS in os.environ
_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # microseconds of CPU time in a period of so many, or "max" (Linux, cgroup v2)


def available(quota: Path = _QUOTA) -> int:
    """The number of cores: the least of this process's CPU affinity, its container's CPU quota and VLM_CORES.

    A VLM_CORES that is not a positive integer is ignored.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no such file, or no quota: "max"
        used, period = map(int, quota.read_text(encoding="ascii").split())
        cores = min(cores, max(1, used // period))
    with suppress(KeyError, ValueError):
        limit = int(os.environ[LIMIT])
        cores = min(cores, limit) if limit > 0 else cores
    return cores


def share() -> None:
    """Sets up torch's threads so that they share the machine. Has an effect only before torch is loaded."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))
    cores = available()
    if cores < (os.cpu_count() or 1):  # torch knows neither of quotas nor, in some builds, of the affinity
        os.environ.setdefault(THREADS, str(cores))
