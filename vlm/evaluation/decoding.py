"""Turns a batch of prompts into answers: free text, text constrained by Outlines, or the most probable label."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from vlm.config.task import Task
from vlm.evaluation.posterior import Posterior
from vlm.evaluation.record import Answers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin


# Takes a left-padded batch of inputs that is on the model's device.
Decoder = Callable[[dict], Answers]


def raw(model: "PreTrainedModel", processor: "ProcessorMixin", max_new_tokens: int) -> Decoder:
    """Greedy generation up to the end-of-turn token, at most `max_new_tokens` tokens.

    The texts contain no special tokens. There is no repetition penalty, because it would punish the labels that the
    prompt lists.
    """
    return lambda inputs: Answers(_generate(model, processor, inputs, max_new_tokens))


def most_probable(posterior: Posterior, task: Task) -> Decoder:
    """Answers with the most probable label (the first one on a tie), and returns the probabilities of all labels."""

    def decode(inputs: dict) -> Answers:
        probabilities = posterior(inputs)
        best = probabilities.argmax(1).tolist()
        return Answers([task.answer(task.labels[label]) for label in best], probabilities.tolist())

    return decode


def outlines(model: "PreTrainedModel", processor: "ProcessorMixin", task: Task) -> Decoder:
    """Greedy generation in which Outlines allows only the task's answers.

    The grammar is compiled once; Outlines then masks every step's logits for the whole batch. Greedy decoding, token by
    token, does not always find the most probable label: see vlm/evaluation/posterior.py.
    """
    import torch
    from outlines import from_transformers
    from outlines.backends import get_regex_logits_processor

    mask = get_regex_logits_processor("outlines_core", from_transformers(model, processor), answers_regex(task))
    # An answer has at most one token per byte, plus one that ends the turn.
    longest = max(len(task.answer(label).encode()) for label in task.labels) + 1

    def decode(inputs: dict) -> Answers:
        mask.reset()
        # Outlines compiles its kernel, which takes a C++ compiler and a minute; eager mode gives the same result.
        with torch.compiler.set_stance("force_eager"):
            return Answers(_generate(model, processor, inputs, longest, logits_processor=[mask]))

    return decode


def answers_regex(task: Task) -> str:
    """A regular expression, in the syntax that Python and Rust share, for exactly the task's answers."""
    return "|".join("".join(_literal(character) for character in task.answer(label)) for label in task.labels)


def _literal(character: str) -> str:
    # re.escape also escapes spaces and quotes, which Rust's syntax does not allow.
    return f"\\{character}" if character in r"\.+*?()|[]{}^$#&-~" else character


def _generate(
    model: "PreTrainedModel", processor: "ProcessorMixin", inputs: dict, max_new_tokens: int, **options
) -> list[str]:
    import torch

    with torch.inference_mode():
        tokens = model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=processor.tokenizer.pad_token_id,
            **options,
        )
    return processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
