"""Whether llama.cpp gives PyTorch's answers with exported files: the same tokens, image tokens and probabilities.

Each of these has failed for files that load without an error and answer with labels: limits of image tokens that a GGUF
does not hold (95 % accuracy became 28 %), large pictures that llama.cpp cuts into tiles, a wrong pre-tokenizer, two BOS
tokens.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vlm.config.task import Task
from vlm.edge.classifier import Classifier, NotExportable
from vlm.edge.llama import Llama
from vlm.evaluation.trie import answer_tokens
from vlm.models.encoding import encode

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from transformers import ProcessorMixin

TOLERANCE = 0.01  # of a probability; F16 has come to .007 on 600 pictures


def verify(
    folder: Path,
    processor: "ProcessorMixin",
    task: Task,
    samples: "Sequence[Image.Image]",
    expected: "np.ndarray",
) -> float:
    """Returns the largest difference of a probability from `expected`, PyTorch's, (samples, labels).

    Both are with the label prior corrected if the classifier has `offsets`: that is what its users get.
    `processor` must not cut pictures into tiles. Raises NotExportable, in one line, if tokens differ, a probability
    differs by more than TOLERANCE, or a label that PyTorch finds more probable by more than that.
    """
    classifier = Classifier.load(folder)
    with Llama(folder) as llama:
        _verify_tokens(llama, classifier, processor, task)
        largest = 0.0
        for number, (picture, row) in enumerate(zip(samples, expected, strict=True), 1):
            counts = llama.prompt_tokens(picture), encode(processor, task, [picture])["input_ids"].shape[1]
            if counts[0] != counts[1]:
                raise NotExportable(
                    f"{folder}: picture {number} of {len(samples)}: llama.cpp's prompt has {counts[0]} tokens, "
                    f"PyTorch's {counts[1]}"
                )
            found = llama.posterior(picture)
            difference = float(abs(found - row).max())
            if difference > TOLERANCE or row.max() - row[found.argmax()] > TOLERANCE:
                raise NotExportable(
                    f"{folder}: picture {number} of {len(samples)}: llama.cpp's answer is "
                    f"{_shown(found, task)}, PyTorch's {_shown(row, task)}; the largest difference of a probability is "
                    f"{difference:.3g}, and {TOLERANCE} is allowed"
                )
            largest = max(largest, difference)
    return largest


def _verify_tokens(llama: Llama, classifier: Classifier, processor: "ProcessorMixin", task: Task) -> None:
    """Raises NotExportable unless the answers and the text around the picture are the same tokens everywhere."""
    tokenizer = processor.tokenizer
    for text in (classifier.prompt.before, classifier.prompt.after):
        _require_equal(text, llama.tokenize(text), tokenizer(text, add_special_tokens=False)["input_ids"])
    answers = zip(classifier.answers, classifier.tokens.answers, answer_tokens(processor, task), strict=True)
    for text, written, wanted in answers:
        _require_equal(text, llama.tokenize(text + tokenizer.eos_token), wanted)
        if list(written) != wanted:
            raise NotExportable(f"classifier.json: {text!r} has the tokens {list(written)}, and should have {wanted}")


def _require_equal(text: str, found: Sequence[int], wanted: Sequence[int]) -> None:
    if list(found) != list(wanted):
        raise NotExportable(f"llama.cpp makes other tokens of {text!r}: {found}, and the tokenizer {wanted}")


def _shown(probabilities: "np.ndarray", task: Task) -> str:
    best = int(probabilities.argmax())
    return f"{task.labels[best]!r} ({probabilities[best]:.3f})"
