"""A model's output layer with only the columns that matter, in float32."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class NarrowHead(torch.nn.Module):
    """The columns of an output layer for some tokens, in float32 whatever the model's dtype.

    bfloat16 has eight significant bits, so logits between 16 and 32 would be multiples of 0.125, and labels would tie.
    """

    def __init__(self, layer: torch.nn.Linear, tokens: list[int]) -> None:
        super().__init__()
        self.weight = layer.weight.detach()[tokens].float()
        self.bias = None if layer.bias is None else layer.bias.detach()[tokens].float()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):  # in a validation pass while training
            return torch.nn.functional.linear(hidden.float(), self.weight, self.bias)


def narrow_head(model: "PreTrainedModel", tokens: list[int]) -> NarrowHead | None:
    """The columns for `tokens`; None for a model that does not expose its output layer, or without tokens."""
    head = model.get_output_embeddings()
    return NarrowHead(head, tokens) if isinstance(head, torch.nn.Linear) and tokens else None


@contextmanager
def replaced(model: "PreTrainedModel", head: NarrowHead | None) -> Iterator[None]:
    """Replaces the model's output layer with `head`; what the model does to logits afterwards still applies."""
    if head is None:
        yield
        return
    own = model.get_output_embeddings()
    model.set_output_embeddings(head)
    try:
        yield
    finally:
        model.set_output_embeddings(own)
