"""The CPU cores that this process may use, and what torch's threads do while they wait for work."""

import os
import statistics
import time
from contextlib import suppress
from pathlib import Path

# How often a waiting thread of libgomp looks for work before it sleeps, on a machine that is busy with other work. By
# default it looks 300,000 times, about a millisecond, and keeps the core from the others; that is fastest on a machine
# that is idle. benchmarks/busy.py measures the choice.
BUSY_SPIN_COUNT = 1000
_SAMPLES, _PAUSE = 5, 0.005  # of the number of threads that run on the machine; seconds between them
# An environment variable with the number of cores that this process and its children may use. A quota and the affinity
# do not say how cores are divided among the processes of a job, nor how many a container has reserved.
LIMIT = "VLM_CORES"
_LOAD = Path("/proc/loadavg")  # "0.20 0.18 0.12 1/80 11206": 1 thread runs, this one (Linux)
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


def crowded(load: Path = _LOAD) -> bool:
    """Whether so many threads of other processes run that there are too few cores for as many threads of ours."""
    others = []
    for _ in range(_SAMPLES):
        try:
            others.append(int(load.read_text(encoding="ascii").split()[3].partition("/")[0]) - 1)
        except (OSError, ValueError, IndexError):
            return False
        time.sleep(_PAUSE)
    return statistics.median(others) + available() > (os.cpu_count() or 1)


def share() -> None:
    """Sets up torch's threads for what else the machine is doing. Has an effect only before torch is loaded."""
    if "GOMP_SPINCOUNT" not in os.environ and "OMP_WAIT_POLICY" not in os.environ and crowded():
        os.environ["GOMP_SPINCOUNT"] = str(BUSY_SPIN_COUNT)
    cores = available()
    if cores < (os.cpu_count() or 1):  # torch knows neither of quotas nor, in some builds, of the affinity
        os.environ.setdefault("OMP_NUM_THREADS", str(cores))
