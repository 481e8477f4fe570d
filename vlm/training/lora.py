"""Which linear layers of a model get LoRA: the model's parts, patterns over module names, and what they match."""

import re
from collections.abc import Mapping
from itertools import takewhile
from typing import TYPE_CHECKING

from vlm.config.errors import InputError
from vlm.config.params import LoraParams

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

PARTS = ("language", "projector", "vision")
# Words in a module's dotted name that identify its part; modules with none of them belong to the language model.
_PROJECTOR = re.compile(r"projector|connector|merger|resampler")
_PATCH_EMBEDDING = re.compile(r"patch_embed")
_VISION = re.compile(r"vision|visual|image_tower|vit\b")


def part(name: str) -> str:
    """The part of a model that a module of this name belongs to: language, projector or vision."""
    if _PROJECTOR.search(name):
        return "projector"
    return "vision" if _VISION.search(name) else "language"


def inside(model: "PeftModel | PreTrainedModel") -> "PreTrainedModel":
    """The model without PEFT's wrapper, if it has one; LoRA layers stay in it."""
    from peft import PeftModel

    return model.get_base_model() if isinstance(model, PeftModel) else model


def derived_pattern(model: "PreTrainedModel", wanted: str) -> str | None:
    """An anchored regular expression for a part's linear layers; None if the part has none.

    The output layer and the layer that embeds the pixels of a patch are left out, like token embeddings.
    """
    names = [n for n, _ in _linear_layers(model) if part(n) == wanted and not _PATCH_EMBEDDING.search(n)]
    if not names:
        return None
    parents = zip(*(name.rpartition(".")[0].split(".") for name in names), strict=False)
    prefix = [words[0] for words in takewhile(lambda words: len(set(words)) == 1, parents)]
    last = sorted({name.rpartition(".")[2] for name in names})
    between = r"\.(.*\.)?" if prefix else "(.*)"
    pattern = f"{re.escape('.'.join(prefix))}{between}({'|'.join(map(re.escape, last))})"
    matched = {name for name, _ in _linear_layers(model) if re.fullmatch(pattern, name)}
    # There is no short pattern if two parts share a layer name (Qwen's merger is inside its vision tower).
    return f"^{pattern}$" if matched == set(names) else f"^({'|'.join(map(re.escape, names))})$"


def matched_modules(model: "PreTrainedModel", pattern: str, key: str) -> dict[str, "torch.nn.Linear"]:
    """The linear layers whose whole name matches `pattern`, by name; error messages start with `key`.

    Raises InputError if it matches nothing, the output layer, or anything other than a linear layer, or if one of the
    names that it lists as alternatives, as in (q_proj|o_proj), is in no match: it would silently not be trained.
    """
    import torch

    found = {name: module for name, module in model.named_modules() if re.fullmatch(pattern, name)}
    if not found:
        raise InputError(
            f"{key}: {pattern!r} matches no module of the model, which has {_examples(model)}; "
            f"or give parts, joined by +: {', '.join(PARTS)}"
        )
    head = model.get_output_embeddings()
    for name, module in found.items():
        if module is head:
            raise InputError(
                f"{key}: {pattern!r} matches {name}, the output layer, which cannot have LoRA here, because only some "
                f"of its columns are computed; use other layers, for example {_examples(model)}"
            )
        if not isinstance(module, torch.nn.Linear):
            raise InputError(
                f"{key}: {pattern!r} matches {name or 'the model as a whole'}, a {type(module).__name__}; it should "
                f"match linear layers only, for example {_examples(model)}"
            )
    for word, with_word, without in _alternatives(pattern):
        if not any(re.fullmatch(with_word, name) and not re.fullmatch(without, name) for name in found):
            raise InputError(
                f"{key}: no linear layer of the model matches {word!r} of {pattern!r}; remove it, "
                f"or use names that the model has, for example {_examples(model)}"
            )
    return found


def table(modules: "dict[str, torch.nn.Linear]", adapted: "PeftModel") -> list[dict[str, str | int]]:
    """One row per matched module: its part, its size and the number of its parameters that PEFT trains."""
    trained = {name: p.numel() for name, p in adapted.named_parameters() if p.requires_grad}
    return [
        {
            "module": name,
            "part": part(name),
            "in_features": layer.in_features,
            "out_features": layer.out_features,
            "trainable_parameters": sum(n for key, n in trained.items() if key.startswith(f"base_model.model.{name}.")),
        }
        for name, layer in modules.items()
    ]


def _linear_layers(model: "PreTrainedModel") -> list[tuple[str, "torch.nn.Linear"]]:
    import torch

    head = model.get_output_embeddings()
    return [(n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not head]


def _examples(model: "PreTrainedModel") -> str:
    names = [name for name, _ in _linear_layers(model)]
    shown = {part(name): name for name in reversed(names)}
    return ", ".join(shown.values())


def _alternatives(pattern: str) -> list[tuple[str, str, str]]:
    """The words of every group (a|b), each with the pattern reduced to that word and the pattern without the group."""
    found = []
    for group in re.finditer(r"\((?:\?:)?(\w+(?:\|\w+)+)\)", pattern):
        before, after = pattern[: group.start()], pattern[group.end() :]
        found += [(word, f"{before}({word}){after}", f"{before}(?!){after}") for word in group[1].split("|")]
    return found


def pattern_for(model: "PreTrainedModel", wanted: str, known: Mapping[str, str], key: str) -> str:
    """The pattern for a preset ("language+projector"), from the `known` patterns of its parts or else the module tree.

    Anything else is a pattern already and is returned as is. Raises InputError for a part that the model lacks.
    """
    parts = wanted.split("+")
    if not set(parts) <= set(PARTS):
        return wanted
    patterns = []
    for name in parts:
        pattern = known.get(name) or derived_pattern(model, name)
        if pattern is None:
            raise InputError(f"{key}: {wanted!r}: the model has no linear layers in its {name}; leave that part out")
        patterns.append(pattern)
    if len(patterns) == 1:
        return patterns[0]
    return f"^({'|'.join(pattern.removeprefix('^').removesuffix('$') for pattern in patterns)})$"


def config(knobs: LoraParams, pattern: str) -> "LoraConfig":
    """PEFT's configuration for LoRA on the modules whose names match `pattern`."""
    from peft import LoraConfig

    return LoraConfig(
        r=knobs.r,
        lora_alpha=knobs.alpha,
        lora_dropout=knobs.dropout,
        target_modules=pattern,  # a string, because PEFT writes a list in an order that changes from run to run
        use_rslora=knobs.rslora,
        use_dora=knobs.dora,
        bias=knobs.bias,
        task_type="CAUSAL_LM",
    )
