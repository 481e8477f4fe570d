import dataclasses
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from vlm.compute import processes
from vlm.config import cores
from vlm.config.errors import InputError
from vlm.config.events import Log, Progress, Scalars
from vlm.evaluation import Evaluation
from vlm.training.job import FineTuning

ROOT = Path(__file__).parents[3]


@pytest.fixture
def job(task, tiny, image_params, finetune_params, make_split):
    lora = finetune_params.lora.model_copy(update={"dropout": 0.0})  # each process has its own random numbers
    knobs = finetune_params.model_copy(update={"loss": "both", "epochs": 2, "eval_steps": 4, "lora": lora})
    split, validation = make_split("train", 16), make_split("test", 8)
    return FineTuning(task, tiny, image_params, knobs, seed=5, train=split, validation=validation)


@pytest.mark.slow
def test_two_processes_train_like_one(job, tmp_path):
    """With gloo on the CPU: the same losses in every step, and the same files as with one process."""
    curves = []
    for count in (1, 2):
        directory, events = tmp_path / str(count), []
        directory.mkdir()
        if count == 1:
            job.run(directory, events.append)
        else:
            processes.run(job, directory, events.append, count)
        scalars = [event for event in events if isinstance(event, Scalars)]
        curves.append([(event.step, name, value) for event in scalars for name, value in event.values.items()])
        assert [e.done for e in events if isinstance(e, Progress) and e.unit == "step"] == [0, *range(1, 9)]
    one, two = (pd.DataFrame(curve, columns=["step", "name", "value"]) for curve in curves)
    pd.testing.assert_frame_equal(one, two, rtol=1e-3, atol=1e-5)
    names = [sorted(path.relative_to(tmp_path / n).as_posix() for path in (tmp_path / n).glob("*")) for n in "12"]
    assert names[0] == names[1]
    tables = [pd.read_csv(tmp_path / n / "checkpoints.csv") for n in "12"]
    pd.testing.assert_frame_equal(*tables, rtol=1e-3)


@pytest.mark.slow
def test_an_input_error_in_a_process_is_raised_here(job, tmp_path):
    odd = dataclasses.replace(job, finetune=job.finetune.model_copy(update={"batch_size": 5}))
    with pytest.raises(InputError, match=re.escape("finetune.batch_size: 5 should be a multiple of 2 processes")):
        processes.run(odd, tmp_path, lambda event: None, 2)


@pytest.fixture
def evaluation(task, tiny, image_params, make_split):
    test, validation = make_split("test", 14), make_split("train", 6)
    return Evaluation(task, tiny, image_params, 4, test, raw_tokens=4, engine="posterior", validation=validation)


@pytest.mark.slow
def test_two_processes_answer_like_one(evaluation, tmp_path):
    """Without GPUs: the same bytes, and progress over the whole split."""
    (tmp_path / "one").mkdir()
    evaluation.run(tmp_path / "one", lambda event: None)
    events = []
    processes.answer(evaluation, tmp_path / "two", events.append, ["0", "1"])
    for name in set(evaluation.RESULTS) - {"runtime.json"}:
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    for unit, samples in (("raw answer", 14), ("structured answer", 14), ("validation image", 6)):
        done = [event.done for event in events if isinstance(event, Progress) and event.unit == unit]
        assert done == sorted(done)
        assert done[-1] == samples
    records = {file: file.read_bytes() for file in (tmp_path / "two").glob("* processes/*/*.jsonl")}
    assert len(records) == 6
    made = [file.stat().st_mtime_ns for file in records]
    events.clear()
    processes.answer(evaluation, tmp_path / "two", events.append, ["0", "1"])  # the records have all answers
    assert {event.unit: event.done for event in events if isinstance(event, Progress)} == {
        "raw answer": 14,
        "structured answer": 14,
        "validation image": 6,
    }
    assert {file: file.read_bytes() for file in records} == records
    assert [file.stat().st_mtime_ns for file in records] == made


@dataclasses.dataclass(frozen=True)
class Unequal:
    """Shard 0 fails as soon as shard 1 is at work, which takes two minutes."""

    def answer(self, directory, emit, shard):
        started = directory.parent / "started"
        if shard[0] == 1:
            started.touch()
            time.sleep(120)
            (directory.parent / "ended").touch()
        while not started.exists():
            time.sleep(0.1)
        raise InputError("data/test.parquet: is wrong")


@pytest.mark.slow
def test_an_input_error_in_one_of_several_evaluations_ends_all(tmp_path):
    with pytest.raises(InputError, match=r"data/test\.parquet: is wrong"):
        processes.answer(Unequal(), tmp_path, lambda event: None, ["0", "1"])
    assert [path.name for path in tmp_path.glob("*/*ed")] == ["started"]


@dataclasses.dataclass(frozen=True)
class Reporting:
    """Says which cores and which GPU each process has, and a message that is the same for all shards."""

    def run(self, directory, emit):
        emit(Log(f"{cores.available()} cores"))
        emit(Log(f"{os.environ['OMP_NUM_THREADS']} threads"))

    def answer(self, directory, emit, shard):
        emit(Log("warning: the same"))
        emit(Log(f"shard {shard[0]}: {cores.available()} cores, GPU {os.environ['CUDA_VISIBLE_DEVICES']}"))

    def merge(self, directories, directory):
        pass


@pytest.mark.slow
def test_processes_divide_the_cores_and_shards_say_the_same_once(tmp_path):
    each = max(1, cores.available() // 2)
    texts = []
    processes.answer(Reporting(), tmp_path, lambda event: texts.append(event.text), ["3", "4"])
    assert sorted(texts) == [f"shard {n}: {each} cores, GPU {n + 3}" for n in (0, 1)] + ["warning: the same"]
    texts.clear()
    processes.run(Reporting(), tmp_path, lambda event: texts.append(event.text), 2)
    assert [text for text in texts if "cores" in text] == [f"{each} cores"] * 2


# Starts two processes on a machine of 64 cores, 8 of which this process may use.
_ON_EIGHT_CORES = """
import os
from pathlib import Path
os.cpu_count, os.sched_getaffinity = lambda: 64, lambda process: set(range(8))
from vlm.config import cores
cores._QUOTA = Path("none")
from tests.vlm.compute.test_processes import Reporting
from vlm.compute import processes
processes.run(Reporting(), Path("."), lambda event: print(event.text), 2)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("users", "each"), [(None, 4), ("3", 3)])
def test_processes_divide_the_threads_unless_the_user_has_set_their_number(users, each):
    environment = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", cores.LIMIT)}
    environment |= {"OMP_NUM_THREADS": users} if users else {}
    done = subprocess.run(
        [sys.executable, "-c", _ON_EIGHT_CORES], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if "threads" in line] == [f"{each} threads"] * 2


@dataclasses.dataclass(frozen=True)
class Broken:
    def run(self, directory, emit):
        emit(Log("here"))
        raise RuntimeError("a bug")


@pytest.mark.slow
def test_a_bug_in_a_process_is_raised_with_its_traceback(tmp_path):
    events = []
    with pytest.raises(RuntimeError, match="a bug"):
        processes.run(Broken(), tmp_path, events.append, 1)
    assert events == [Log("here")]
