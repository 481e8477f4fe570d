"""The tokens of a task's answers, and the trie that they form."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlm.config.errors import InputError
from vlm.config.task import Task
from vlm.models import chat

if TYPE_CHECKING:
    from transformers import ProcessorMixin


def turn_tokens(processor: "ProcessorMixin", task: Task) -> list[list[int]]:
    """The tokens of the model's whole turn for each label, in the order of the labels; training supervises these.

    The turn's text is what the chat template appends to the prompt, tokenised in one piece. An end-of-turn token is
    added if the template writes none.
    """
    tokenizer = processor.tokenizer
    prompt = chat.messages(processor, task)
    before = chat.prompt(processor, task)
    tokens = []
    for label in task.labels:
        turn = {"role": "assistant", "content": [{"type": "text", "text": task.answer(label)}]}
        whole = processor.apply_chat_template([*prompt, turn], tokenize=False)
        ids = tokenizer(whole.removeprefix(before), add_special_tokens=False)["input_ids"]
        tokens.append(ids if tokenizer.eos_token_id in ids else [*ids, tokenizer.eos_token_id])
    return tokens


def answer_tokens(processor: "ProcessorMixin", task: Task) -> list[list[int]]:
    """The same, up to and including the end-of-turn token. Raises InputError if two labels have the same tokens."""
    end = processor.tokenizer.eos_token_id
    tokens = [ids[: ids.index(end) + 1] for ids in turn_tokens(processor, task)]
    first_with = {}
    for label, ids in zip(task.labels, tokens, strict=True):
        other = first_with.setdefault(tuple(ids), label)
        if other != label:
            raise InputError(
                f"configs/tasks/{task.name}.yaml: labels: {other!r} and {label!r} have the same tokens in this model, "
                "whose tokenizer cannot tell their characters apart; rename one"
            )
    return tokens


@dataclass(frozen=True)
class Part:
    """Some paths of a trie as the tree that they form, one token for each distinct beginning of a path, parents first.

    `chains[i]` are the indices of token i's ancestors, from the top down, and i. `nodes` are branching nodes, each as
    (its index in the trie, the index of its last token).
    """

    tokens: tuple[int, ...]
    chains: tuple[tuple[int, ...], ...]
    nodes: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Trie:
    """A trie of token sequences, none of which is a prefix of another.

    `forced` is the prefix that all share. `nodes` are the branching nodes, each as its path after `forced`, root first;
    an edge leads from a node to one of its children: edges[e] is (index of the node, token). `edges_of[i]` are the
    edges on the path of sequence i. `paths` are the longest paths, which together visit all nodes except the root: a
    forward pass over one yields the logits of every node on it.
    """

    forced: tuple[int, ...]
    nodes: tuple[tuple[int, ...], ...]
    edges: tuple[tuple[int, int], ...]
    edges_of: tuple[tuple[int, ...], ...]
    paths: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]]) -> "Trie":
        shared = 0
        while len(sequences) > 1 and len({sequence[shared] for sequence in sequences}) == 1:
            shared += 1
        children: dict[tuple[int, ...], dict[int, None]] = {}
        tails = [tuple(sequence[shared:]) for sequence in sequences]
        for tail in tails:
            for depth, token in enumerate(tail):
                children.setdefault(tail[:depth], {})[token] = None
        nodes = sorted((path for path, tokens in children.items() if len(tokens) > 1), key=lambda path: len(path))
        edges = [(node, token) for node, path in enumerate(nodes) for token in children[path]]
        index = {(nodes[node], token): edge for edge, (node, token) in enumerate(edges)}
        edges_of = [
            tuple(index[step] for step in ((tail[:d], tail[d]) for d in range(len(tail))) if step in index)
            for tail in tails
        ]
        inner = {path[:depth] for path in nodes for depth in range(len(path))}
        paths = [path for path in nodes if path and path not in inner]
        return cls(tuple(sequences[0][:shared]), tuple(nodes), tuple(edges), tuple(edges_of), tuple(paths))

    def parts(self, most: int) -> list[Part]:
        """Divides the paths into trees of at most `most` tokens, or of one path if that is longer.

        Every node except the root is in the `nodes` of one part.
        """
        groups: list[dict[tuple[int, ...], tuple[int, ...]]] = []  # by beginning of a path: its chain
        for path in sorted(self.paths):  # neighbours share the longest beginnings
            beginnings = [path[:depth] for depth in range(1, len(path) + 1)]
            if not groups or len(groups[-1].keys() | beginnings) > most:
                groups.append({})
            for beginning in beginnings:
                chains = groups[-1]
                chains.setdefault(beginning, (*chains.get(beginning[:-1], ()), len(chains)))
        left = {path: node for node, path in enumerate(self.nodes) if path}
        return [
            Part(
                tokens=tuple(beginning[-1] for beginning in chains),
                chains=tuple(chains.values()),
                nodes=tuple((left.pop(path), i) for i, path in enumerate(chains) if path in left),
            )
            for chains in groups
        ]
