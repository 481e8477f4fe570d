"""Copies of a model's cache."""

import copy
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import Cache


def can_repeat(cache: object) -> bool:
    """Whether `repeated` works for a model's cache."""
    from transformers import Cache

    return isinstance(cache, Cache) and all(hasattr(layer, "reorder_cache") for layer in cache.layers)


def with_own_layers(cache: "Cache") -> "Cache":
    """A new cache with the same tensors. It can grow without changing `cache`, for attention layers then replace them.

    Convolution layers write into theirs.
    """
    new = copy.copy(cache)
    new.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in new.layers:
        # Convolution layers keep their states in dicts, which a shallow copy would share.
        vars(layer).update({name: dict(value) for name, value in vars(layer).items() if isinstance(value, dict)})
    return new


def repeated(cache: "Cache", rows: torch.Tensor) -> "Cache":
    """A new cache with the given rows of `cache`, which is left unchanged."""
    new = with_own_layers(cache)
    new.reorder_cache(rows)  # indexing copies the tensors
    return new


def size(cache: "Cache") -> int:
    """The size in bytes of the tensors in a cache."""
    states = [value for layer in cache.layers for value in vars(layer).values()]
    states += [inner for value in states if isinstance(value, dict) for inner in value.values()]
    return sum(state.nbytes for state in states if isinstance(state, torch.Tensor))
