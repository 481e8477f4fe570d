"""Measures how torch's waiting threads affect a busy machine: `python -m benchmarks.busy`.

Between two parallel loops libgomp's threads look for work, again and again, before they sleep. That is fastest on an
idle machine, and on a busy one it takes the cores from the others. The settings, environment variables that count only
if they are set before torch is loaded:

- default: libgomp's own, which looks 300,000 times.
- ours: a GOMP_SPINCOUNT of 1,000, which vlm.config.cores sets.
- passive: OMP_WAIT_POLICY=PASSIVE, which sleeps at once.

The work is fine-tuning tiny on 96 badges (the case `ours` of benchmarks/finetuning.py), on a machine that is idle, that
runs another program on one core, or that runs the same training a second time (the mean of the two). Prints the median
of the rounds in samples per second and writes benchmarks/busy.json. About a quarter of an hour on two idle cores.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.finetuning import MODULES

ROWS, BATCH = 96, 16
ROUNDS = 3
SETTINGS = {
    "default": {"GOMP_SPINCOUNT": "300000"},  # set, because vlm would otherwise set its own
    "ours": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
}
LOADS = ("idle", "another program", "the same twice")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "benchmarks.finetuning", "--prepare", folder], check=True)
        found: dict[tuple[str, str], list[float]] = {(name, load): [] for name in SETTINGS for load in LOADS}
        for _ in range(ROUNDS):  # all settings in each, so that a slow phase of the host affects all of them
            for name, load in found:
                found[name, load].append(speed(SETTINGS[name], load, folder))
    rows = [
        {"setting": name, "load": load, "samples_per_second": round(statistics.median(speeds), 1)}
        for (name, load), speeds in found.items()
    ]
    for row in rows:
        print(f"{row['setting']:8} {row['load']:16} {row['samples_per_second']:6.1f} samples/s")
    Path("benchmarks/busy.json").write_text(json.dumps(rows, indent=2) + "\n")


def speed(setting: dict[str, str], load: str, folder: str) -> float:
    """Samples per second of one training with an environment `setting` beside a `load`."""
    if load == "idle":
        return result(start(setting, folder))
    if load == "the same twice":
        both = [start(setting, folder), start(setting, folder)]
        return statistics.mean(result(process) for process in both)
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        return result(start(setting, folder))
    finally:
        other.kill()
        other.wait()


def start(setting: dict[str, str], folder: str) -> subprocess.Popen:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP", "OMP"))}
    work = ["--measure", "ours", "tiny", MODULES, str(ROWS), str(BATCH), folder]
    command = [sys.executable, "-m", "benchmarks.finetuning", *work]
    return subprocess.Popen(
        command, env=inherited | setting, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def result(process: subprocess.Popen) -> float:
    output, _ = process.communicate()
    return json.loads(output.splitlines()[-1])["samples_per_second"]


if __name__ == "__main__":
    main()
