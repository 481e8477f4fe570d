"""The logits at a trie's deeper nodes, with the cache of the prompts repeated for every path: for any architecture."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from vlm.evaluation import caches
from vlm.evaluation.trie import Trie
from vlm.models import memory

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

# Bytes of repeated cache at a time on a CPU; measured with 1,000 labels, this is 3.4 times as fast as 1 GiB.
_CPU_BUDGET = 64 << 20
_FEWEST_AT_ONCE = 8  # paths at a time, whatever the budget


def budget(device_memory: int | None, weights: int) -> int:
    """The size in bytes that a repeated cache may have, given the bytes of the device's memory and of the weights.

    `device_memory` is None on a CPU. On a GPU it is the total, not what is free at the moment: the budget decides which
    paths share a forward pass, which affects the last digits, and equal runs should have equal results.
    """
    # A quarter leaves room for the prompts' own cache, the activations, and one layer's copy of keys and values.
    return _CPU_BUDGET if device_memory is None else max(_CPU_BUDGET, (device_memory - weights) // 4)


class RepeatedCache:
    """Runs the paths of a trie as rows of a batch, each on its own copy of its prompt's cache."""

    def __init__(self, model: "PreTrainedModel", trie: Trie) -> None:
        self._model = model
        # Sorted by length, so that a forward pass needs little padding
        self._paths = sorted(trie.paths, key=len)
        # The nodes on each path that no path before it has, as (index of the node, position in the path)
        self._nodes: list[list[tuple[int, int]]] = []
        index = {path: node for node, path in enumerate(trie.nodes) if path}
        for path in self._paths:
            depths = [depth for depth in range(1, len(path) + 1) if path[:depth] in index]
            self._nodes.append([(index.pop(path[:depth]), depth - 1) for depth in depths])
        total = None
        if model.device.type == "cuda":
            total = torch.cuda.get_device_properties(model.device).total_memory
        self._budget = budget(total, sum(parameter.nbytes for parameter in model.parameters()))
        self._most_at_once = max(1, len(self._paths))  # paths that memory has room for, as far as is known

    def logits(self, cache: "Cache", mask: torch.Tensor) -> Iterator[tuple[Sequence[int], torch.Tensor]]:
        """Yields some nodes' indices and their logits, (batch, nodes, columns), until it has yielded every deeper node.

        `cache` is that of the prompts, which is left unchanged, and `mask` (batch, tokens) their attention mask. A pass
        that does not fit into memory is repeated with half of its paths, and later passes have no more: halving the
        batch would not make it smaller, because the budget then has room for twice as many paths.
        """
        # Models with multi-dimensional positions (Qwen's) store the text positions' offset from the token count.
        deltas = next((d for m in self._model.modules() if (d := getattr(m, "rope_deltas", None)) is not None), None)
        within_budget = max(_FEWEST_AT_ONCE, self._budget // max(1, caches.size(cache)))
        start = 0
        while start < len(self._paths):
            paths = self._paths[start : start + min(within_budget, self._most_at_once)]
            try:
                logits = self._pass(paths, cache, mask, deltas)
            except RuntimeError as error:
                if not memory.is_out_of_memory(error) or len(paths) == 1:
                    raise
                logits = None
            if logits is None:  # outside the except block, where the exception would keep the pass's tensors alive
                memory.free_memory()
                self._most_at_once = len(paths) // 2
                continue
            found = [(i, *place) for i in range(len(paths)) for place in self._nodes[start + i]]
            path, nodes, position = zip(*found, strict=True)
            yield nodes, logits[:, path, position]
            start += len(paths)

    def _pass(
        self, paths: Sequence[Sequence[int]], cache: "Cache", mask: torch.Tensor, deltas: torch.Tensor | None
    ) -> torch.Tensor:
        """(batch, paths, tokens of the longest path, columns): the logits after every token of every path."""
        batch, device = len(mask), mask.device
        # Padding at the end does no harm.
        tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor(path) for path in paths], batch_first=True).to(device)
        k, length = tokens.shape
        rows = torch.arange(batch, device=device).repeat_interleave(k)
        wide = torch.cat([mask[rows], mask.new_ones(batch * k, length)], dim=1)
        positions = {}
        if deltas is not None:
            positions = {"position_ids": (wide.cumsum(1) - 1 + deltas[rows])[None, :, -length:].expand(3, -1, -1)}
        output = self._model(
            input_ids=tokens.repeat(batch, 1),
            attention_mask=wide,
            past_key_values=caches.repeated(cache, rows),
            use_cache=True,
            **positions,
        )
        return output.logits.unflatten(0, (batch, k))
