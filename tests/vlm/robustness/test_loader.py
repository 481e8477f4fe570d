from types import SimpleNamespace

import pytest
import torch

from vlm.evaluation import feed
from vlm.models import loading
from vlm.robustness.loader import CorruptedLoader

ON_CPU = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32)
CONDITIONS = [("clean", 0), ("gaussian_noise", 3), ("spatter", 5)]


@pytest.fixture
def load(task, tiny, image_params, make_split):
    return CorruptedLoader(make_split("test", 5), [1, 4], CONDITIONS, loading.load_processor(tiny, image_params), task)


def test_rows_are_numbered_by_sample_and_then_condition(load):
    every = load(range(6))["pixel_values"]
    assert len({row.numpy().tobytes() for row in every}) == 6
    assert every.shape[0] == 6
    assert load([4, 1])["pixel_values"].equal(every[[4, 1]])
    alike, other = ((every[row] - every[0]).abs().mean() for row in (1, 3))
    assert alike < other  # noise changes less than another sample
    assert load.lengths([0, 5]) == [load([0])["input_ids"].shape[1]] * 2


def test_worker_processes_see_the_same_pictures(load):
    batches = [[0, 1, 2, 3], [4, 5]]
    for rows, found in feed.feed(load, batches, ON_CPU, workers=2):
        expected = load(rows)
        assert all(found[name].equal(expected[name]) for name in expected)
