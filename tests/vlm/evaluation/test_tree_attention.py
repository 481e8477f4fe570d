"""Compares tree attention with the repeated cache; test_posterior compares both with brute force."""

import numpy as np
import pytest
import torch
from PIL import Image

from vlm.config.task import Task
from vlm.evaluation import tree_attention
from vlm.evaluation.posterior import Posterior
from vlm.evaluation.repeated_cache import RepeatedCache
from vlm.evaluation.tree_attention import TreeAttention
from vlm.evaluation.trie import Trie, answer_tokens
from vlm.models import encoding, loading

FIRST, SECOND, THIRD = ["North", "New", "Nor", "Saint", "Sai"], ["bury", "bridge", "b", "brook"], ["", " Cross", " C"]
LABELS = [f"{a}{b}{c}" for a in FIRST for b in SECOND for c in THIRD]


@pytest.fixture
def towns():
    return Task(name="t", source={"folder": "photos"}, labels=LABELS, prompt={"user": "Where?"})


@pytest.fixture
def load(tiny, image_params):
    """load(dtype="bfloat16") returns tiny and its processor."""
    return lambda **values: loading.load(tiny.model_copy(update=values), image_params)


def encoded(vlm, processor, task):
    """Prompts of three lengths, so with padding."""
    rng = np.random.default_rng(0)
    sizes = [(128, 128), (60, 200), (300, 90)]
    pictures = [Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)) for w, h in sizes]
    inputs = encoding.encode(processor, task, pictures).to(vlm.device, vlm.dtype)
    assert inputs["attention_mask"].min() == 0
    return inputs


def by_node(runner, cache, mask):
    return {node: logits[:, i] for nodes, logits in runner.logits(cache, mask) for i, node in enumerate(nodes)}


@torch.inference_mode()
@pytest.mark.parametrize("most", [1, 10, 1000])
def test_the_logits_are_those_of_the_repeated_cache_which_stays_unchanged(load, towns, monkeypatch, most):
    monkeypatch.setattr(tree_attention, "_CPU_TOKENS", most)
    vlm, processor = load()
    inputs = encoded(vlm, processor, towns)
    trie = Trie.of(answer_tokens(processor, towns))
    assert max(map(len, trie.paths)) > 4  # longer than the convolution's window
    cache = vlm(**inputs, use_cache=True, logits_to_keep=1).past_key_values
    tree = TreeAttention(vlm, trie)
    first = by_node(tree, cache, inputs["attention_mask"])
    again = by_node(tree, cache, inputs["attention_mask"])
    repeated = by_node(RepeatedCache(vlm, trie), cache, inputs["attention_mask"])
    assert first.keys() == repeated.keys() == set(range(1, len(trie.nodes)))
    for node, logits in first.items():
        assert torch.equal(logits, again[node])
        assert (logits - repeated[node]).abs().max() < 1e-4


def test_eager_attention_has_the_same_posterior(load, towns):
    vlm, processor = load(attention="eager")
    assert TreeAttention.supports(vlm)
    found = Posterior(vlm, processor, towns)(encoded(vlm, processor, towns))
    vlm, processor = load(attention="sdpa")
    assert (found - Posterior(vlm, processor, towns)(encoded(vlm, processor, towns))).abs().max() < 1e-6


def test_bfloat16_has_about_the_same_posterior(load, towns):
    vlm, processor = load(dtype="bfloat16")
    found = Posterior(vlm, processor, towns)(encoded(vlm, processor, towns))
    vlm, processor = load(dtype="float32")
    assert (found - Posterior(vlm, processor, towns)(encoded(vlm, processor, towns))).abs().max() < 0.02


@torch.inference_mode()
def test_the_model_is_as_before_also_after_an_error(load, towns, no_memory_for):
    vlm, processor = load()
    inputs = encoded(vlm, processor, towns)
    before = vlm(**inputs, use_cache=True)
    tree = TreeAttention(vlm, Trie.of(answer_tokens(processor, towns)))
    with no_memory_for(2), pytest.raises(torch.OutOfMemoryError):
        list(tree.logits(before.past_key_values, inputs["attention_mask"]))
    assert torch.equal(vlm(**inputs).logits, before.logits)


def test_flash_attention_is_not_supported(load):
    vlm, _ = load()
    assert TreeAttention.supports(vlm)
    vlm.config.get_text_config()._attn_implementation = "flash_attention_2"
    assert not TreeAttention.supports(vlm)
