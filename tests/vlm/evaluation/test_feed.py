import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from vlm.config.errors import InputError
from vlm.config.events import Log
from vlm.evaluation import batching, feed
from vlm.models import loading

ON_CPU = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32)
BFLOAT16 = SimpleNamespace(device=torch.device("cpu"), dtype=torch.bfloat16)
BATCHES = [[3, 0], [1], [2, 4], [4], [0, 1]]


class Numbers:
    """Loads row numbers as floats; `begun` has the batches that it was asked for, in this process."""

    def __init__(self):
        self.begun = []

    def __call__(self, rows):
        self.begun.append(list(rows))
        if 7 in rows:
            raise ValueError("row 7")
        return {"rows": torch.tensor(rows, dtype=torch.float32)}

    def lengths(self, rows):
        return list(rows)


@pytest.fixture
def load(task, tiny, image_params, make_split):
    return batching.Loader(make_split("test", 5), loading.load_processor(tiny, image_params), task)


def test_batches_come_in_order_and_at_most_two_are_prepared_in_advance():
    two_ahead = threading.Event()

    class Watched(Numbers):
        def __call__(self, rows):
            inputs = super().__call__(rows)
            if rows == [2]:
                two_ahead.set()
            return inputs

    load, batches = Watched(), [[row] for row in range(6)]
    results = feed.feed(load, batches, ON_CPU)
    batch, inputs = next(results)
    assert (batch, inputs["rows"].tolist()) == ([0], [0.0])
    assert two_ahead.wait(10)
    assert len(load.begun) <= 4
    assert [batch for batch, _ in results] == batches[1:]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_while_preparing_a_batch_is_raised(workers):
    with pytest.raises(ValueError, match="row 7"):
        list(feed.feed(Numbers(), [[1], [7]], ON_CPU, workers=workers))


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_prepare_the_same_batches(load, workers):
    load([0])  # opens the file in this process, too
    for (batch, found), rows in zip(feed.feed(load, BATCHES, ON_CPU, workers=workers), BATCHES, strict=True):
        expected = load(rows)
        assert batch == rows
        assert found.keys() == expected.keys()
        assert all(found[name].equal(expected[name]) for name in expected)


def test_worker_processes_hand_over_pixels_in_the_models_dtype(load):
    for batch, found in feed.feed(load, BATCHES, BFLOAT16, workers=2):
        assert found["pixel_values"].equal(load(batch)["pixel_values"].bfloat16())
        assert found["input_ids"].dtype == torch.int64


def test_no_batches():
    assert list(feed.feed(Numbers(), [], ON_CPU, workers=2)) == []
    assert list(feed.computed(lambda rows, inputs: None, Numbers(), [], ON_CPU, lambda event: None)) == []


def test_worker_processes_are_limited_by_shared_memory_and_memory(monkeypatch):
    events, shared = [], 16 << 30
    monkeypatch.setattr(Path, "exists", lambda path: True)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=shared))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=24 << 30))
    assert feed.most_workers(8, 100 << 20, events.append) == 8
    assert feed.most_workers(8, 512 << 20, events.append) == 5  # 12 GB for 4 copies of 512 MB each, and 256 MB
    assert not events
    shared = 64 << 20  # docker's default
    assert feed.most_workers(8, 16 << 20, events.append) == 1
    assert "/dev/shm has room for 1 processes that prepare pictures, of 8" in events[0].text
    assert "--shm-size" in events[0].text


def test_what_is_computed_gets_pixels_in_the_models_dtype_and_every_row_once():
    seen = []

    def compute(rows, inputs):
        seen.append(inputs["rows"].dtype)
        return inputs["rows"].tolist()

    found = list(feed.computed(compute, Numbers(), BATCHES, BFLOAT16, lambda event: None))
    assert found == [(batch, [[float(row) for row in batch]]) for batch in BATCHES]
    assert set(seen) == {torch.bfloat16}


def test_a_batch_that_does_not_fit_is_split_and_so_are_those_after_it():
    tried, events = [], []

    def compute(rows, inputs):
        tried.append(len(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return list(rows)

    batches = [[0], [1, 2, 3, 4, 5], [6, 8, 9, 10]]
    found = list(feed.computed(compute, Numbers(), batches, ON_CPU, events.append))
    assert found == [([0], [[0]]), (batches[1], [[1, 2], [3, 4], [5]]), (batches[2], [[6, 8], [9, 10]])]
    assert tried == [1, 5, 2, 2, 1, 2, 2]
    assert events == [Log("out of memory with 5 samples; continuing with 2 at a time")]


def test_a_sample_that_does_not_fit_is_a_one_line_error():
    def compute(rows, inputs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(InputError, match=r"image\.max_tokens: not even one sample fits"):
        list(feed.computed(compute, Numbers(), [[1, 2]], ON_CPU, lambda event: None))
