"""The logits at a trie's deeper nodes in one pass over the trie's tokens: tree attention, for LFM2.

The trie's tokens follow each prompt as one sequence, and each attends to the prompt and to its own ancestors (Miao et
al. 2023, SpecInfer, arXiv 2305.09781). So paths share the tokens with which they begin alike, and the prompt's cache is
not repeated for every path.

That needs layers that can be told which tokens are a token's ancestors, and its position. LFM2's attention takes both
as arguments; this module computes its short convolutions, which read the last tokens of the sequence, over ancestors.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from vlm.evaluation import caches
from vlm.evaluation.trie import Part, Trie

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

# Tokens of the trie in a pass. Attention takes time for all pairs of them, also those that the mask leaves out, so on a
# CPU several passes are faster: measured with 1,000 labels and batches of 32, 64 tokens are 1.3 times as fast as 256
# and twice as fast as 1,024.
_CPU_TOKENS = 64
# On a GPU small passes are bound by launches. An estimate, not measured. It depends on neither the batch nor the free
# memory, so that equal runs stay equal.
_GPU_TOKENS = 1024


@dataclass(frozen=True)
class _Pass:
    """A part of the trie as tensors on the model's device; n tokens."""

    tokens: torch.Tensor  # (n)
    depths: torch.Tensor  # (n), 1 for the children of the root
    masked: torch.Tensor  # (n, n), True where the row's token must not attend to the column's
    windows: torch.Tensor  # (n * kernel), what the convolution reads: its state's rows, then the tokens'
    nodes: tuple[int, ...]  # indices of the branching nodes
    positions: torch.Tensor  # (nodes), each node's index in the tokens


class TreeAttention:
    """Runs a trie in passes of tokens that attend to their ancestors."""

    def __init__(self, model: "PreTrainedModel", trie: Trie) -> None:
        from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv

        self._model = model
        self._convolutions = [module for module in model.modules() if isinstance(module, Lfm2ShortConv)]
        kernel = model.config.get_text_config().conv_L_cache
        most = _CPU_TOKENS if model.device.type == "cpu" else _GPU_TOKENS
        self._passes = [_as_tensors(part, kernel, model.device) for part in trie.parts(most)]

    @staticmethod
    def supports(model: "PreTrainedModel") -> bool:
        """Whether the model is an LFM2 whose attention takes a mask of pairs of tokens; FlashAttention takes none."""
        config = model.config.get_text_config()
        return config.model_type == "lfm2" and config._attn_implementation in ("sdpa", "eager")

    def logits(self, cache: "Cache", mask: torch.Tensor) -> Iterator[tuple[Sequence[int], torch.Tensor]]:
        """Yields some nodes' indices and their logits, (batch, nodes, columns), until it has yielded every deeper node.

        `cache` is that of the prompts, which is left unchanged, and `mask` (batch, tokens) their attention mask.
        """
        batch, length = mask.shape
        dtype = self._model.dtype
        for part in self._passes:
            n = len(part.tokens)
            masked = torch.cat([(mask == 0)[:, None].expand(-1, n, -1), part.masked.expand(batch, -1, -1)], dim=2)
            # Added to the attention scores
            added = torch.zeros(masked.shape, dtype=dtype, device=mask.device)
            added.masked_fill_(masked, torch.finfo(dtype).min)
            with self._over_ancestors(cache, part.windows):
                output = self._model(
                    input_ids=part.tokens.expand(batch, -1),
                    attention_mask=added[:, None],
                    position_ids=(length - 1 + part.depths)[None],
                    past_key_values=caches.with_own_layers(cache),
                    use_cache=True,
                    logits_to_keep=part.positions,
                )
            yield part.nodes, output.logits

    @contextmanager
    def _over_ancestors(self, cache: "Cache", windows: torch.Tensor) -> Iterator[None]:
        """Makes the convolutions read every token's ancestors."""
        for module in self._convolutions:
            state = cache.layers[module.layer_idx].conv_states[0]
            module.forward = _convolution(module, state, windows)
        try:
            yield
        finally:
            for module in self._convolutions:
                del module.forward  # the class's own again


def _convolution(module: torch.nn.Module, state: torch.Tensor, windows: torch.Tensor) -> Callable[..., torch.Tensor]:
    """Lfm2ShortConv.forward, with a window of its own for every token.

    `state` (batch, channels, kernel) is what the convolution would have read of the last tokens of the prompt.
    """
    weight = module.conv.weight[:, 0].t().float()  # (kernel, channels)
    before = state.transpose(1, 2)

    def forward(hidden_states: torch.Tensor, **_: object) -> torch.Tensor:
        b, c, x = module.in_proj(hidden_states).chunk(3, dim=-1)
        read = torch.cat([before, b * x], dim=1).index_select(1, windows)
        mixed = (read.unflatten(1, (-1, len(weight))).float() * weight).sum(2)
        if module.conv.bias is not None:
            mixed = mixed + module.conv.bias.float()
        return module.out_proj(c * mixed.to(hidden_states.dtype))

    return forward


def _as_tensors(part: Part, kernel: int, device: torch.device) -> _Pass:
    n = len(part.tokens)
    masked = torch.ones(n, n, dtype=torch.bool)
    for i, chain in enumerate(part.chains):
        masked[i, list(chain)] = False
    windows = [[*range(kernel), *(kernel + i for i in chain)][-kernel:] for chain in part.chains]
    nodes, positions = zip(*part.nodes, strict=True)
    return _Pass(
        tokens=torch.tensor(part.tokens, device=device),
        depths=torch.tensor([len(chain) for chain in part.chains], device=device),
        masked=masked.to(device),
        windows=torch.tensor(windows, device=device).flatten(),
        nodes=nodes,
        positions=torch.tensor(positions, device=device),
    )
