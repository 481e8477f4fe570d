import multiprocessing
import shutil
import threading
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from vlm.config.errors import InputError
from vlm.config.events import Log
from vlm.evaluation import batching, feed
from vlm.models import encoding, loading, patches

ON_CPU = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32)
BFLOAT16 = SimpleNamespace(device=torch.device("cpu"), dtype=torch.bfloat16)
BATCHES = [[3, 0], [1], [2, 4], [4], [0, 1]]


class Numbers:
    """Loads row numbers as floats; `begun` has the batches that it was asked for, in this process."""

    def __init__(self, fails=False):
        self.begun = []
        self.fails = fails

    def __call__(self, rows, empty=None):
        self.begun.append(list(rows))
        if 2 in rows and self.fails:
            raise ValueError("row 2")
        return {"rows": torch.tensor(rows, dtype=torch.float32)}

    def lengths(self, rows):
        return list(rows)


@pytest.fixture
def load(task, tiny, image_params, make_split):
    return batching.Loader(make_split("test", 5), loading.load_processor(tiny, image_params), task)


def test_batches_come_in_order_and_at_most_two_are_prepared_in_advance():
    two_ahead = threading.Event()

    class Watched(Numbers):
        def __call__(self, rows, empty=None):
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
    numbers = Numbers(fails=True)
    with pytest.raises(ValueError, match="row 2"):
        list(feed.feed(numbers, [[3], [2]], ON_CPU, workers=workers))
    assert ([2] in numbers.begun) == (workers == 0)


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_prepare_the_same_batches(load, workers):
    load([0])  # opens the file in this process, too
    for (batch, found), rows in zip(feed.feed(load, BATCHES, ON_CPU, workers=workers), BATCHES, strict=True):
        expected = load(rows)
        assert batch == rows
        assert found.keys() == expected.keys()
        assert all(found[name].equal(expected[name]) for name in expected)


@pytest.mark.parametrize("reproduced", [True, False])
def test_worker_processes_hand_over_bytes_or_pixels_in_the_models_dtype(
    reproduced, task, tiny, image_params, make_split, monkeypatch
):
    """For LFM2-VL bytes, which the model's device turns into numbers; otherwise what the processor returns."""
    if not reproduced:
        monkeypatch.setattr(patches, "of", lambda processor: None)
    processor = loading.load_processor(tiny, image_params)
    split = make_split("test", 5)
    load, whole = (batching.Loader(split, processor, task, dtype) for dtype in (torch.bfloat16, None))
    for batch, found in feed.feed(load, BATCHES, BFLOAT16, workers=2):
        assert found["pixel_values"].dtype == (torch.uint8 if reproduced else torch.bfloat16)
        assert found["input_ids"].dtype == torch.int64
        expected, on_device = whole(batch), encoding.to_device(found, BFLOAT16)
        assert on_device.keys() == expected.keys()
        assert on_device["pixel_values"].equal(expected["pixel_values"].bfloat16())


@pytest.mark.parametrize("dtype", [torch.bfloat16, None])
def test_a_worker_process_uses_its_memory_again_after_the_next_batch(dtype, task, tiny, image_params, make_split):
    """LFM2-VL's bytes are written there at once, other pixels are copied."""
    returned = []

    class Watched(batching.Loader):
        def __call__(self, rows, empty=None):
            returned.append(super().__call__(rows, empty))
            return returned[-1]

    load = Watched(make_split("test", 5), loading.load_processor(tiny, image_params), task, dtype)
    batches = feed._Batches(load, [[0, 1], [2, 3], [4, 0], [1]], torch.bfloat16)
    packed = [batches[index].packed for index in range(4)]
    first, second, third, smaller = (of_batch.memory for of_batch in packed)
    assert first.is_shared() and second.is_shared()
    assert first.data_ptr() == third.data_ptr() != second.data_ptr() == smaller.data_ptr()
    assert packed[0].inputs()["pixel_values"].dtype == (torch.bfloat16 if dtype is None else torch.uint8)
    for inputs, of_batch in zip(returned, packed, strict=True):
        assert (inputs["pixel_values"].data_ptr() == of_batch.memory.data_ptr()) == (dtype is not None)
    for rows, of_batch in (([4, 0], packed[2]), ([1], packed[3])):
        expected, found = (encoding.to_device(inputs, BFLOAT16) for inputs in (load(rows), of_batch.inputs()))
        assert found.keys() == expected.keys()
        assert all(found[name].equal(value) for name, value in expected.items())


@pytest.mark.parametrize("workers", [1, 2])
def test_memory_is_handed_over_once_and_again_when_it_has_grown(workers, monkeypatch):
    class Growing(Numbers):
        """With inputs of any shape and size of number, of which some batches have more."""

        def __call__(self, rows, empty=None):
            (row,) = rows
            inputs = {
                "mask": torch.tensor([[True, False, True]]),
                "ids": torch.arange(6).view(2, 3).T + row,
                "half": torch.tensor([0.5] * (1 + row % 3), dtype=torch.bfloat16),
                "number": torch.tensor(row),
            }
            pixels = torch.full((100 if row < 8 else 5000, 3), row, dtype=torch.uint8)
            return inputs if row % 5 == 4 else inputs | {"pixel_values": pixels}

        def lengths(self, rows):
            return [1] * len(rows)

    handed_over = []

    class Pieces(dict):
        def __setitem__(self, name, memory):
            handed_over.append(name)
            super().__setitem__(name, memory)

    received = defaultdict(Pieces)
    monkeypatch.setattr(feed, "_received", received)
    load, batches = Growing(), [[row] for row in range(16)]
    for (row,), found in feed.feed(load, batches, ON_CPU, workers=workers):
        expected = load([row])
        assert found.keys() == expected.keys()
        assert all(found[name].dtype == value.dtype and found[name].equal(value) for name, value in expected.items())
    assert len(handed_over) == 4 * workers and len(set(handed_over)) == 2 * workers  # two pieces, of which each grew
    assert not received


def test_memory_is_given_up_when_the_rest_of_the_batches_is_not_wanted():
    results = feed.feed(Numbers(), [[row] for row in range(50)], ON_CPU, workers=2)
    assert next(results)[1]["rows"].tolist() == [0.0]
    assert len(feed._received) == 1
    results.close()
    assert not feed._received and not multiprocessing.active_children()


def test_what_is_handed_over_is_pinned(monkeypatch):
    """torch's data loader does that for a GPU."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self.clone())
    batches = feed._Batches(Numbers(), [[3, 0]], torch.float32)
    packed = torch.utils.data._utils.pin_memory.pin_memory(batches[0].packed)
    assert [len(memory) for memory in pinned] == [16]  # 8 bytes, aligned
    assert packed.inputs()["rows"].tolist() == [3, 0]


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
