import os
import subprocess
import sys

import pytest

from vlm.config import cores


@pytest.mark.parametrize(
    ("content", "expected"),
    [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("3200000 100000", 8), ("", 8), (None, 8)],
)
def test_a_containers_quota_limits_the_cores(content, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.delenv(cores.LIMIT, raising=False)
    if content is not None:
        (tmp_path / "cpu.max").write_text(content)
    assert cores.available(tmp_path / "cpu.max") == expected


@pytest.mark.parametrize(
    ("limit", "expected"), [("1", 1), ("3", 3), ("9", 4), ("0", 4), ("-1", 4), ("2.5", 4), ("two", 4), ("", 4)]
)
def test_the_environment_limits_the_cores_further(limit, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    (tmp_path / "cpu.max").write_text("400000 100000")
    monkeypatch.setenv(cores.LIMIT, limit)
    assert cores.available(tmp_path / "cpu.max") == expected


SHOW = "import os, vlm, torch; print(torch.get_num_threads(), os.environ.get('GOMP_SPINCOUNT'))"


def shown(affinity: str = "", **environment: str) -> list[str]:
    """The number of torch's threads and the spin count of a process."""
    names = ("OMP_NUM", "OMP_WAIT", "GOMP", "MKL_NUM")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    done = subprocess.run(
        [sys.executable, "-c", f"{affinity}\n{SHOW}"], env=kept | environment, capture_output=True, check=True
    )
    return done.stdout.decode().split()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system cannot bind a process to cores")
def test_torch_starts_no_more_threads_than_the_process_has_cores():
    assert shown("import os; os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])")[0] == "1"


def test_waiting_threads_sleep_soon():
    assert shown()[1] == str(cores.SPIN_COUNT)


def test_what_the_user_has_set_stays():
    assert shown(OMP_NUM_THREADS="2", GOMP_SPINCOUNT="77") == ["2", "77"]
    assert shown(OMP_WAIT_POLICY="ACTIVE")[1] == "None"
