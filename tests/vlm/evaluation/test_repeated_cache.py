import pytest
import torch

from vlm.data import dataset
from vlm.evaluation import batching
from vlm.evaluation.posterior import Posterior
from vlm.evaluation.repeated_cache import RepeatedCache, budget
from vlm.evaluation.tree_attention import TreeAttention
from vlm.models import encoding, loading

GB = 10**9


def test_on_a_gpu_the_budget_is_a_fraction_of_the_memory_that_the_weights_leave():
    assert budget(24 * GB, 4 * GB) == 5 * GB
    assert budget(80 * GB, 4 * GB) == 19 * GB


def test_it_is_never_smaller_than_on_a_cpu():
    on_a_cpu = budget(None, 4 * GB)
    assert on_a_cpu == budget(None, 0) == 64 * 2**20
    assert budget(4 * GB, 4 * GB) == budget(4 * GB, 5 * GB) == on_a_cpu


def test_a_pass_that_does_not_fit_into_memory_is_made_smaller(
    task, tiny, image_params, make_split, no_memory_for, monkeypatch
):
    """Down to one path for each of four pictures, where a batch of one picture would have eight paths at once."""
    monkeypatch.setattr(TreeAttention, "supports", lambda model: False)
    labels = [f"{maker} {model}" for maker in ("Audi", "BMW", "Fiat", "Opel") for model in ("A", "B", "C")]
    task = task.model_copy(update={"labels": tuple(labels), "aliases": {}})
    model, processor = loading.load(tiny, image_params)
    images = [batching.decoded(row.image) for row in dataset.Reader(make_split("test", 4)).rows(range(4))]
    inputs = encoding.encode(processor, task, images)
    posterior = Posterior(model, processor, task)
    assert isinstance(posterior._deeper, RepeatedCache) and len(posterior._deeper._paths) > 3
    whole = posterior(inputs)
    with no_memory_for(4):
        for _ in range(2):
            torch.testing.assert_close(posterior(inputs), whole, rtol=0, atol=1e-6)
    with no_memory_for(3), pytest.raises(torch.OutOfMemoryError):
        posterior(inputs)
