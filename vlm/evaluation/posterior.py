"""The probability of every label, at about the cost of a prefill.

A closed set of answers needs no generation. Let t(label) be the tokens of the model's whole turn that answers with the
label, including the end-of-turn token, tokenised in one piece as in training. The tokens of all labels form a trie. At
a node of the trie the model's next-token distribution is restricted to the node's children and normalised (a softmax
over their logits); an only child has probability 1. A label's probability is the product along its path:

    P(label | image) = prod over the branching nodes n on t(label) of  softmax(logits(n) at n's children)[next token]

This is the distribution over labels that sampling under the grammar "exactly these token sequences" would have. The
probabilities sum to one; `predicted` is the most probable label.

Greedy constrained decoding (what Outlines does) takes the best child at every node instead. The two find the same label
unless (a) the best first token leads to several labels that split its probability, while another token leads to a label
that is more probable than each of them; or (b) Outlines' grammar, which is defined over characters, allows the same
characters as other tokens than t(label), and the model prefers those.

Cost: the tokens at the start that all labels share are appended to the prompt, so one prefill yields the root's
distribution. All deeper branching nodes come from further passes over the few tokens that lead to them, on the
prefill's cache: tree_attention.py for LFM2, repeated_cache.py for other architectures. Only the columns of the output
layer for tokens that distinguish labels are computed, in float32.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from vlm.config.task import Task
from vlm.evaluation import caches, output_layer
from vlm.evaluation.repeated_cache import RepeatedCache
from vlm.evaluation.tree_attention import TreeAttention
from vlm.evaluation.trie import Trie, answer_tokens
from vlm.models import chat
from vlm.models.encoding import encode

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel, ProcessorMixin


class Posterior:
    """Probabilities of all labels for a batch of prompts.

    If the task shows the picture last, everything before it is the same for every sample: it is run once, and every
    batch starts from its cache. That requires batches without padding (`wants_equal_lengths`).
    """

    def __init__(self, model: "PreTrainedModel", processor: "ProcessorMixin", task: Task) -> None:
        self._model = model
        self._trie = trie = Trie.of(answer_tokens(processor, task))
        tokens = sorted({token for _, token in trie.edges})
        self._head = output_layer.narrow_head(model, tokens)
        column = {token: i for i, token in enumerate(tokens)} if self._head is not None else {t: t for t in tokens}
        self._column_of_edge = torch.tensor([column[token] for _, token in trie.edges], dtype=torch.long)
        self._node_of_edge = torch.tensor([node for node, _ in trie.edges], dtype=torch.long)
        self._forced = torch.tensor(trie.forced, dtype=torch.long, device=model.device)
        edges = torch.zeros(len(trie.edges), len(trie.edges_of), dtype=torch.float64)
        for label, label_edges in enumerate(trie.edges_of):
            edges[list(label_edges), label] = 1
        self._edges = edges  # (edges, labels): 1 if the edge is on the label's path
        self._deeper = TreeAttention(model, trie) if TreeAttention.supports(model) else RepeatedCache(model, trie)
        self._shared = self._shared_prefix(processor, task) if task.prompt.image == "last" else None

    @property
    def wants_equal_lengths(self) -> bool:
        return self._shared is not None

    def __call__(self, inputs: dict) -> torch.Tensor:
        """Returns (batch, labels), float64 on the CPU, rows sum to 1; `inputs` are the processor's, left-padded."""
        batch = len(inputs["input_ids"])
        if not self._trie.edges:
            return torch.ones(batch, 1, dtype=torch.float64)
        with torch.inference_mode(), output_layer.replaced(self._model, self._head):
            logits = self._edge_logits(inputs).cpu().double()  # (batch, edges)
        # A softmax over the edges of each node, in log space
        node = self._node_of_edge.expand(batch, -1)
        largest = torch.full((batch, len(self._trie.nodes)), -torch.inf, dtype=torch.float64)
        largest = largest.scatter_reduce(1, node, logits, "amax")
        shifted = logits - largest.gather(1, node)
        total = torch.zeros_like(largest).scatter_add(1, node, shifted.exp())
        probabilities = ((shifted - total.log().gather(1, node)) @ self._edges).exp()
        return probabilities / probabilities.sum(1, keepdim=True)  # the sum is 1 except for rounding

    def _edge_logits(self, inputs: dict) -> torch.Tensor:
        """Returns (batch, edges), float32: every edge's logit at its node."""
        batch, device = len(inputs["input_ids"]), self._forced.device
        extended = _append(inputs, self._forced)
        if self._shared is not None:
            length, cache = self._shared
            extended["input_ids"] = extended["input_ids"][:, length:]
            rows = torch.zeros(batch, dtype=torch.long, device=device)
            extended["past_key_values"] = caches.repeated(cache, rows)
        wants_cache = bool(self._trie.paths) and self._uses_cache
        output = self._model(**extended, use_cache=wants_cache or self._shared is not None, logits_to_keep=1)
        at_edges = torch.empty(batch, len(self._trie.edges), device=device)
        self._fill(at_edges, [0], output.logits[:, -1:])  # node 0 is the root
        if self._trie.paths:
            cache = output.past_key_values
            if wants_cache and caches.can_repeat(cache):
                deeper = self._deeper.logits(cache, extended["attention_mask"])
            else:
                deeper = self._without_cache(inputs)
            for nodes, logits in deeper:
                self._fill(at_edges, nodes, logits)
        return at_edges

    def _fill(self, at_edges: torch.Tensor, nodes: Sequence[int], logits: torch.Tensor) -> None:
        """Writes the logits of the edges that leave `nodes`, out of (batch, nodes, columns), into (batch, edges)."""
        row = torch.full((len(self._trie.nodes),), -1)
        row[list(nodes)] = torch.arange(len(nodes))
        edges = (row[self._node_of_edge] >= 0).nonzero()[:, 0]
        at_edges[:, edges] = logits[:, row[self._node_of_edge[edges]], self._column_of_edge[edges]].float()

    @property
    def _uses_cache(self) -> bool:
        return getattr(self._model.config.get_text_config(), "use_cache", True)

    def _without_cache(self, inputs: dict) -> Iterator[tuple[Sequence[int], torch.Tensor]]:
        """The deeper nodes and their logits with one full pass for each path, for models without a usable cache."""
        for path in self._trie.paths:
            nodes = [node for node, start in enumerate(self._trie.nodes) if start and path[: len(start)] == start]
            extra = torch.cat([self._forced, torch.tensor(path, device=self._forced.device)])
            output = self._model(**_append(inputs, extra), use_cache=False, logits_to_keep=len(path))
            yield nodes, output.logits[:, [len(self._trie.nodes[node]) - 1 for node in nodes]]

    def _shared_prefix(self, processor: "ProcessorMixin", task: Task) -> tuple[int, "Cache"] | None:
        """The number of tokens before the picture, and the cache after them; None if the cache cannot be shared.

        It cannot if a picture's tokens attend in both directions or have multi-dimensional positions: the processor
        then marks them, and a forward pass that begins in the middle would lose the marks.
        """
        from PIL import Image

        sample = encode(processor, task, [Image.new("RGB", (64, 64))])
        if {"token_type_ids", "mm_token_type_ids"} & set(sample) or not self._uses_cache:
            return None
        prompt = chat.prompt(processor, task)
        before = processor.tokenizer(prompt.split(processor.image_token)[0], add_special_tokens=False)["input_ids"]
        ids, length = sample["input_ids"][0].tolist(), 0
        while length < len(before) and ids[length] == before[length]:
            length += 1
        if length == 0:
            return None
        with torch.inference_mode():
            prefix = torch.tensor([ids[:length]], device=self._model.device)
            cache = self._model(
                input_ids=prefix, attention_mask=torch.ones_like(prefix), use_cache=True, logits_to_keep=1
            ).past_key_values
        return (length, cache) if caches.can_repeat(cache) else None


def _append(inputs: dict, tokens: torch.Tensor) -> dict:
    """The inputs with `tokens` appended to every prompt."""
    batch = len(inputs["input_ids"])
    extended = {**inputs, "input_ids": torch.cat([inputs["input_ids"], tokens.expand(batch, -1)], dim=1)}
    mask = inputs["attention_mask"]
    extended["attention_mask"] = torch.cat([mask, mask.new_ones(batch, len(tokens))], dim=1)
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in inputs:
            extended[name] = torch.cat([inputs[name], inputs[name].new_zeros(batch, len(tokens))], dim=1)
    return extended
