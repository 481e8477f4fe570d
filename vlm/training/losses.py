"""The losses of fine-tuning, `finetune.loss`. Only the positions of the answer that matter go through the output layer.

- tokens: the cross-entropy of the answer's tokens, end-of-turn token included, in nats a token.
- labels: -log P(label | image) in nats a sample, for the posterior of vlm.evaluation.posterior. Its gradient reaches
  the branching nodes on the label's path alone, and there the logits of the node's children.
- both: the second plus three times the first, so that answers without constraints learn their form, too.

The answer's tokens are the input (teacher forcing), so one forward pass has the logits of every node on the label's
path. Nodes off the path have none, which rules out an exact label smoothing at that price. Classes are weighted by how
often they are drawn (`finetune.balance`).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from vlm.config.params import Loss
from vlm.config.task import Task
from vlm.evaluation import output_layer
from vlm.evaluation.trie import Trie, answer_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin
    from transformers.utils import ModelOutput

UNITS: dict[Loss, str] = {
    "tokens": "nats a token",
    "labels": "nats a sample, for the probability of its label",
    "both": "nats: three times a token's, plus a sample's for the probability of its label",
}
# The weight of the loss `tokens` in `both`. An answer has about ten tokens, so each counts about a third of the label.
# With 1, free answers to car_badges were worse (docs/log.md).
TOKENS_IN_BOTH = 3
_NONE = -1  # the edge at a position where nothing is decided


def edges_at(trie: Trie, label: int, length: int) -> list[int]:
    """For each of the first `length` tokens of a label's answer: the edge that it takes, -1 if only one token fits."""
    found = [_NONE] * length
    for edge in trie.edges_of[label]:
        node, _ = trie.edges[edge]
        found[len(trie.forced) + len(trie.nodes[node])] = edge
    return found


class AnswerLoss:
    """The loss of a batch of vlm.training.trainer.Collator, divided by the number of tokens and samples of a step."""

    def __init__(self, kind: Loss, model: "PreTrainedModel", processor: "ProcessorMixin", task: Task) -> None:
        """`model` has the output layer; it is the model inside a PeftModel."""
        trie = Trie.of(answer_tokens(processor, task))
        self.kind = kind
        deepest = max(map(len, trie.edges_of))  # the most decisions on a label's path
        # Training that goes well stays below it: 20 nats a token or decision; a uniform guess among 65k tokens has 11.
        self.largest = 20.0 * {"tokens": 1, "labels": max(1, deepest), "both": TOKENS_IN_BOTH + deepest}[kind]
        self._model = model
        self._tokens = sorted({token for _, token in trie.edges})
        column = {token: i if kind == "labels" else token for i, token in enumerate(self._tokens)}
        children: list[list[int]] = [[] for _ in trie.nodes]
        places = []  # of each edge among those of its node
        for node, token in trie.edges:
            places.append(len(children[node]))
            children[node].append(column[token])
        widest = max(map(len, children), default=1)
        # (edges, widest): the columns of the logits of all children of the edge's node, padded with -1
        rows = [children[node] + [_NONE] * (widest - len(children[node])) for node, _ in trie.edges]
        self._siblings = torch.tensor(rows, dtype=torch.long, device=model.device).view(-1, widest)
        self._places = torch.tensor(places, dtype=torch.long, device=model.device)

    def __call__(
        self, model: torch.nn.Module, batch: dict[str, torch.Tensor], counts: "Sequence[torch.Tensor | float] | None"
    ) -> "tuple[torch.Tensor, ModelOutput]":
        """Returns the loss and the model's output, whose logits are those of the positions that matter.

        `counts` are the numbers of supervised tokens and of samples to divide by; None stands for the batch's own.
        `model` is what is called: the model or a wrapper of it.
        """
        inputs = {name: value for name, value in batch.items() if name not in ("labels", "edges")}
        target, edges = batch["labels"][:, 1:], batch["edges"][:, 1:]  # of the next token, for each position
        answers = target != -100
        wanted = edges != _NONE if self.kind == "labels" else answers
        with self._output_layer(wanted):
            output = model(**inputs, use_cache=False)  # its logits: (wanted positions, columns)
        logits = output.logits.float()
        tokens, samples = (answers.sum(), len(answers)) if counts is None else counts
        if self.kind == "labels":
            return self._of_labels(logits, edges[wanted]) / samples, output
        loss = functional.cross_entropy(logits, target[wanted], reduction="sum") / tokens
        if self.kind == "both":
            taken = edges[wanted]
            decided = taken != _NONE
            loss = TOKENS_IN_BOTH * loss + self._of_labels(logits[decided], taken[decided]) / samples
        return loss, output

    def _of_labels(self, logits: torch.Tensor, taken: torch.Tensor) -> torch.Tensor:
        """The sum of -log P(label | image), from the logits, (decisions, columns), at which the edges `taken` leave."""
        siblings = self._siblings[taken]
        among = logits.gather(1, siblings.clamp(min=0)).masked_fill(siblings == _NONE, -torch.inf)
        return functional.cross_entropy(among, self._places[taken], reduction="sum")

    @contextmanager
    def _output_layer(self, wanted: torch.Tensor) -> Iterator[None]:
        """Makes the output layer skip positions that are not `wanted`, and for `labels` columns that decide nothing."""

        def keep(head: torch.nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            (hidden,) = args
            return (hidden[:, :-1][wanted],)

        own = self._model.get_output_embeddings()
        head = _Columns(own, self._tokens) if self.kind == "labels" else None
        hook = (head or own).register_forward_pre_hook(keep)
        try:
            with output_layer.replaced(self._model, head):
                yield
        finally:
            hook.remove()


class _Columns(torch.nn.Module):
    """The columns of an output layer for some tokens, in float32 even under autocast, with gradients for the layer.

    Reduced precision would make multiples of 0.125 of logits above 16; see vlm.evaluation.output_layer.
    """

    def __init__(self, layer: torch.nn.Linear, tokens: list[int]) -> None:
        super().__init__()
        self._layer = [layer]  # in a list, so that it does not become a part of this module
        self._tokens = tokens

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        (layer,) = self._layer
        weight = layer.weight[self._tokens].float()
        bias = None if layer.bias is None else layer.bias[self._tokens].float()
        with torch.autocast(hidden.device.type, enabled=False):
            return functional.linear(hidden.float(), weight, bias)
