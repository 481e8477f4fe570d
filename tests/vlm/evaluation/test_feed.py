import threading
from types import SimpleNamespace

import pytest
import torch

from vlm.evaluation import batching
from vlm.evaluation.feed import feed
from vlm.models import loading

ON_CPU = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32)
BATCHES = [[3, 0], [1], [2, 4]]


def test_batches_come_in_order_and_at_most_two_are_prepared_in_advance():
    begun, two_ahead = [], threading.Event()

    def load(batch):
        begun.append(batch)
        if batch == [2]:
            two_ahead.set()
        return {"rows": batch}

    batches = [[row] for row in range(6)]
    results = feed(load, batches, ON_CPU)
    assert next(results) == ([0], {"rows": [0]})
    assert two_ahead.wait(10)
    assert len(begun) <= 4
    assert list(results) == [([row], {"rows": [row]}) for row in range(1, 6)]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_while_preparing_a_batch_is_raised(workers):
    def load(batch):
        raise ValueError(f"row {batch[0]}")

    with pytest.raises(ValueError, match="row 7"):
        list(feed(load, [[7]], ON_CPU, workers))


def test_worker_processes_prepare_the_same_batches(task, tiny, image_params, make_split):
    load = batching.Loader(make_split("test", 5), loading.load_processor(tiny, image_params), task)
    load([0])  # opens the file in this process, too
    for (batch, found), rows in zip(feed(load, BATCHES, ON_CPU, 2), BATCHES, strict=True):
        expected = load(rows)
        assert batch == rows
        assert found.keys() == expected.keys()
        assert all(found[name].equal(expected[name]) for name in expected)


def test_worker_processes_hand_over_pixels_in_the_models_dtype(task, tiny, image_params, make_split):
    load = batching.Loader(make_split("test", 5), loading.load_processor(tiny, image_params), task)
    model = SimpleNamespace(device=torch.device("cpu"), dtype=torch.bfloat16)
    for batch, found in feed(load, BATCHES, model, 2):
        assert found["pixel_values"].equal(load(batch)["pixel_values"].bfloat16())
        assert found["input_ids"].dtype == torch.int64


def test_no_batches():
    assert list(feed(lambda batch: {}, [], ON_CPU, 2)) == []
