"""Classifier.swift: the classifier's labels, question and answers as Swift code on llama.cpp's C API."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vlm.edge.classifier import NotExportable

if TYPE_CHECKING:
    from vlm.edge.classifier import Classifier
    from vlm.evaluation.trie import Trie

_TEMPLATES = Path(__file__).with_name("templates")

# The build of llama.cpp against whose headers the file is written. A test compares it with the installed xllamacpp.
BUILD = 11549

# The Swift Programming Language, "Lexical Structure": the reserved words
_KEYWORDS = frozenset(
    "associatedtype borrowing class consuming deinit enum extension fileprivate func import init inout internal let "
    "nonisolated open operator precedencegroup private protocol public rethrows static struct subscript typealias var "
    "break case catch continue default defer do else fallthrough for guard if in repeat return switch throw where "
    "while Any as await false is nil self Self super throws true try".split()
)
# Members that every enum of this kind has, and names that mean something else after a dot, even in backticks
_TAKEN = frozenset("allCases rawValue hashValue hash encode init self none some".split())


def source(classifier: "Classifier") -> str:
    """The content of Classifier.swift. Raises NotExportable for two labels that Swift takes for the same string."""
    from vlm.evaluation.trie import Trie

    _require_distinct(classifier)
    trie, tokens = Trie.of(classifier.tokens.answers), classifier.tokens
    return rendered(
        "Classifier.swift.jinja",
        build=BUILD,
        task=classifier.task,
        cases=list(zip(identifiers(classifier.labels), classifier.labels, strict=True)),
        before=classifier.prompt.before,
        after=classifier.prompt.after,
        prompt_tokens=tokens.before + tokens.after + tokens.around_image,
        context=context_size(classifier),
        image=classifier.image,
        forced=trie.forced if trie.edges else (),
        nodes=[[token for node, token in trie.edges if node == number] for number in range(len(trie.nodes))],
        paths=trie.paths,
        nodes_on_paths=_nodes_on_paths(trie),
        steps=_steps(trie),
        offsets=classifier.offsets or [0.0] * len(classifier.labels),
    )


def rendered(template: str, **values: object) -> str:
    """A file of vlm/edge/templates, filled in."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        autoescape=False,
    )
    environment.filters |= {"swift": literal, "numbers": lambda numbers: f"[{', '.join(map(str, numbers))}]"}
    return environment.get_template(template).render(**values)


def context_size(classifier: "Classifier") -> int:
    """The tokens of the prompt, the largest picture and the longest answer, in steps of 256, which are llama.cpp's."""
    tokens = classifier.tokens
    prompt = tokens.before + tokens.after + tokens.around_image + classifier.image.max_tokens
    return -(-(prompt + max(map(len, tokens.answers))) // 256) * 256


def identifiers(labels: Sequence[str]) -> list[str]:
    """A distinct name of an enum's case for every label, in lower camel case; a keyword is put in backticks.

    Keeps letters and digits of all scripts, as far as Unicode allows them in identifiers (UAX #31).
    """
    names: list[str] = []
    for label in labels:
        name = _camel_case(label)
        if name in _TAKEN:
            name += "_"
        free, number = name, 1
        while free in names:
            number += 1
            free = f"{name}{number}"
        names.append(free)
    return [f"`{name}`" if name in _KEYWORDS else name for name in names]


def _camel_case(label: str) -> str:
    text = unicodedata.normalize("NFC", label)
    spaced = "".join(c if c != "_" and f"_{c}".isidentifier() else " " for c in text)
    words = spaced.split()
    if not words:
        return "label"
    first = words[0].lower() if words[0].isupper() else words[0][0].lower() + words[0][1:]
    name = first + "".join(word[0].upper() + word[1:] for word in words[1:])
    return name if name.isidentifier() else f"_{name}"


def literal(text: str) -> str:
    """A Swift string literal. A backslash is escaped, so `\\(` does not interpolate; so is all that does not print."""
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return '"' + "".join(escapes.get(c) or (c if c.isprintable() else f"\\u{{{ord(c):X}}}") for c in text) + '"'


def _require_distinct(classifier: "Classifier") -> None:
    """Swift compares strings, and so an enum's raw values, by canonical equivalence."""
    first: dict[str, str] = {}
    for label in classifier.labels:
        other = first.setdefault(unicodedata.normalize("NFC", label), label)
        if other != label:
            raise NotExportable(
                f"configs/tasks/{classifier.task}.yaml: labels: {other!a} and {label!a} look the same and are the same "
                "string in Swift; rename one"
            )


def _nodes_on_paths(trie: "Trie") -> list[list[int]]:
    """For each path, the node after each of its tokens, or -1: every node but the root is on one path."""
    left = {path: node for node, path in enumerate(trie.nodes) if path}
    return [[left.pop(path[:depth], -1) for depth in range(1, len(path) + 1)] for path in trie.paths]


def _steps(trie: "Trie") -> list[list[int]]:
    """For each label its edges: node, index among the node's children, node, index, ..."""
    children: dict[int, list[int]] = {}
    for edge, (node, _) in enumerate(trie.edges):
        children.setdefault(node, []).append(edge)
    return [
        [number for edge in edges for number in (trie.edges[edge][0], children[trie.edges[edge][0]].index(edge))]
        for edges in trie.edges_of
    ]
