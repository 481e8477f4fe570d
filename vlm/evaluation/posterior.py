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
distribution. All deeper branching nodes come from one more forward pass of a few tokens per row, on the prefill's cache
repeated for each path. Only the columns of the output layer for tokens that distinguish labels are computed.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vlm.config.task import Task
from vlm.evaluation.trie import Trie, answer_tokens
from vlm.models import chat
from vlm.models.loading import encode

if TYPE_CHECKING:
    import torch
    from transformers import Cache, PreTrainedModel, ProcessorMixin

# As many paths go through at once as keep the repeated cache within this many bytes (measured on a CPU with 1,000
# labels: 64 MiB is 3.4 times as fast as 1 GiB), but never fewer than _FEWEST_AT_ONCE.
_CACHE_BUDGET = 64 << 20
_FEWEST_AT_ONCE = 8


class Posterior:
    """Probabilities of all labels for a batch of prompts.

    If the task shows the picture last, everything before it is the same for every sample: it is run once, and every
    batch starts from its cache. That requires batches without padding (`wants_equal_lengths`).
    """

    def __init__(self, model: "PreTrainedModel", processor: "ProcessorMixin", task: Task) -> None:
        import torch

        self._model = model
        self._trie = trie = Trie.of(answer_tokens(processor, task))
        device = model.device
        # Where each node's logits come from: (path, number of the path's tokens that lead to the node).
        self._place = [
            (next((p for p, path in enumerate(trie.paths) if path[: len(node)] == node), 0), len(node))
            for node in trie.nodes
        ]
        tokens = sorted({token for _, token in trie.edges})
        self._head = _narrow_head(model, tokens)
        column = {token: i for i, token in enumerate(tokens)} if self._head is not None else {t: t for t in tokens}
        self._columns = [
            torch.tensor([column[token] for m, token in trie.edges if m == n], device=device)
            for n in range(len(trie.nodes))
        ]
        self._forced = torch.tensor(trie.forced, dtype=torch.long, device=device)
        edges = torch.zeros(len(trie.edges), len(trie.edges_of), dtype=torch.float64)
        for label, label_edges in enumerate(trie.edges_of):
            edges[list(label_edges), label] = 1
        self._edges = edges  # (edges, labels): 1 if the edge is on the label's path
        self._node_of_edge = torch.tensor([node for node, _ in trie.edges], dtype=torch.long)
        self._shared = self._shared_prefix(processor, task) if task.prompt.image == "last" else None

    @property
    def wants_equal_lengths(self) -> bool:
        return self._shared is not None

    def __call__(self, inputs: dict) -> "torch.Tensor":
        """Returns (batch, labels), float64 on the CPU, rows sum to 1; `inputs` are the processor's, left-padded."""
        import torch

        batch = len(inputs["input_ids"])
        if not self._trie.edges:
            return torch.ones(batch, 1, dtype=torch.float64)
        with torch.inference_mode(), _output_layer(self._model, self._head):
            logits = self._edge_logits(inputs).float().cpu().double()  # (batch, edges)
        # A softmax over the edges of each node, in log space
        node = self._node_of_edge.expand(batch, -1)
        largest = torch.full((batch, len(self._trie.nodes)), -torch.inf, dtype=torch.float64)
        largest = largest.scatter_reduce(1, node, logits, "amax")
        shifted = logits - largest.gather(1, node)
        total = torch.zeros_like(largest).scatter_add(1, node, shifted.exp())
        probabilities = ((shifted - total.log().gather(1, node)) @ self._edges).exp()
        return probabilities / probabilities.sum(1, keepdim=True)  # the sum is 1 except for rounding

    def _edge_logits(self, inputs: dict) -> "torch.Tensor":
        """Returns (batch, edges): every edge's logit at its node."""
        import torch

        trie = self._trie
        extended = _append(inputs, self._forced)
        if self._shared is not None:
            length, cache = self._shared
            extended["input_ids"] = extended["input_ids"][:, length:]
            rows = torch.zeros(len(inputs["input_ids"]), dtype=torch.long, device=self._forced.device)
            extended["past_key_values"] = _repeated(cache, rows)
        wants_cache = bool(trie.paths) and self._uses_cache
        output = self._model(**extended, use_cache=wants_cache or self._shared is not None, logits_to_keep=1)
        by_node = {0: output.logits[:, -1]}  # (batch, columns); node 0 is the root
        if trie.paths:
            if wants_cache and _can_repeat(output.past_key_values):
                by_path = self._from_cache(output.past_key_values, extended["attention_mask"])
            else:
                by_path = self._without_cache(inputs)
            deeper: dict[int, list[int]] = {}
            for n, (path, _) in enumerate(self._place[1:], start=1):
                deeper.setdefault(path, []).append(n)
            for path, logits in by_path:  # (batch, tokens of the path, columns)
                for n in deeper[path]:
                    by_node[n] = logits[:, self._place[n][1] - 1]
        # Edges are in the order of their nodes.
        return torch.cat([by_node[n][:, columns] for n, columns in enumerate(self._columns)], dim=1)

    @property
    def _uses_cache(self) -> bool:
        return getattr(self._model.config.get_text_config(), "use_cache", True)

    def _from_cache(self, cache: "Cache", mask: "torch.Tensor") -> Iterator[tuple[int, "torch.Tensor"]]:
        """Yields every path's logits, with as many paths at once as the budget for the repeated cache allows."""
        import torch

        batch, device = len(mask), mask.device
        # Models with multi-dimensional positions (Qwen's) store the text positions' offset from the token count.
        deltas = next((d for m in self._model.modules() if (d := getattr(m, "rope_deltas", None)) is not None), None)
        at_once = max(_FEWEST_AT_ONCE, _CACHE_BUDGET // max(1, _size(cache)))
        # Sorted by length, so that a step needs little padding
        order = sorted(range(len(self._trie.paths)), key=lambda path: len(self._trie.paths[path]))
        for start in range(0, len(order), at_once):
            chosen = order[start : start + at_once]
            paths = [torch.tensor(self._trie.paths[path]) for path in chosen]
            # Padding at the end does no harm.
            tokens = torch.nn.utils.rnn.pad_sequence(paths, batch_first=True).to(device)
            k, length = tokens.shape
            rows = torch.arange(batch, device=device).repeat_interleave(k)
            wide = torch.cat([mask[rows], mask.new_ones(batch * k, length)], dim=1)
            positions = {}
            if deltas is not None:
                positions = {"position_ids": (wide.cumsum(1) - 1 + deltas[rows])[None, :, -length:].expand(3, -1, -1)}
            output = self._model(
                input_ids=tokens.repeat(batch, 1),
                attention_mask=wide,
                past_key_values=_repeated(cache, rows),
                use_cache=True,
                **positions,
            )
            logits = output.logits.unflatten(0, (batch, k))
            for i, path in enumerate(chosen):
                yield path, logits[:, i]

    def _without_cache(self, inputs: dict) -> Iterator[tuple[int, "torch.Tensor"]]:
        """The same with one full forward pass per path, for models whose cache cannot be repeated."""
        import torch

        for i, path in enumerate(self._trie.paths):
            extra = torch.cat([self._forced, torch.tensor(path, device=self._forced.device)])
            output = self._model(**_append(inputs, extra), use_cache=False, logits_to_keep=len(path))
            yield i, output.logits

    def _shared_prefix(self, processor: "ProcessorMixin", task: Task) -> tuple[int, "Cache"] | None:
        """The number of tokens before the picture, and the cache after them; None if the cache cannot be shared.

        It cannot if a picture's tokens attend in both directions or have multi-dimensional positions: the processor
        then marks them, and a forward pass that begins in the middle would lose the marks.
        """
        import torch
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
        return (length, cache) if _can_repeat(cache) else None


def _append(inputs: dict, tokens: "torch.Tensor") -> dict:
    """The inputs with `tokens` appended to every prompt."""
    import torch

    batch = len(inputs["input_ids"])
    extended = {**inputs, "input_ids": torch.cat([inputs["input_ids"], tokens.expand(batch, -1)], dim=1)}
    mask = inputs["attention_mask"]
    extended["attention_mask"] = torch.cat([mask, mask.new_ones(batch, len(tokens))], dim=1)
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in inputs:
            extended[name] = torch.cat([inputs[name], inputs[name].new_zeros(batch, len(tokens))], dim=1)
    return extended


def _narrow_head(model: "PreTrainedModel", tokens: list[int]) -> "torch.nn.Linear | None":
    """The model's output layer with only the columns of `tokens`; None for a model that does not expose its layer."""
    import torch

    head = model.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear) or not tokens:
        return None
    with torch.no_grad():
        narrow = torch.nn.Linear(head.in_features, len(tokens), bias=head.bias is not None, device="meta")
        narrow.weight = torch.nn.Parameter(head.weight[tokens], requires_grad=False)
        if head.bias is not None:
            narrow.bias = torch.nn.Parameter(head.bias[tokens], requires_grad=False)
    return narrow


@contextmanager
def _output_layer(model: "PreTrainedModel", head: "torch.nn.Linear | None") -> Iterator[None]:
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


def _can_repeat(cache: object) -> bool:
    from transformers import Cache

    return isinstance(cache, Cache) and all(hasattr(layer, "reorder_cache") for layer in cache.layers)


def _repeated(cache: "Cache", rows: "torch.Tensor") -> "Cache":
    """A new cache with the given rows of `cache`, which is left unchanged."""
    repeated = copy.copy(cache)
    repeated.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in repeated.layers:
        # Convolution layers keep their states in dicts, which a shallow copy would share.
        vars(layer).update({name: dict(value) for name, value in vars(layer).items() if isinstance(value, dict)})
    repeated.reorder_cache(rows)  # indexing copies the tensors
    return repeated


def _size(cache: "Cache") -> int:
    """The size in bytes of the tensors in a cache."""
    import torch

    states = [value for layer in cache.layers for value in vars(layer).values()]
    states += [inner for value in states if isinstance(value, dict) for inner in value.values()]
    return sum(state.nbytes for state in states if isinstance(state, torch.Tensor))
