import re

import numpy as np
import pytest
from outlines_core import Guide, Index, Vocabulary
from PIL import Image

from vlm.config.task import Task
from vlm.evaluation import decoding
from vlm.evaluation.posterior import Posterior
from vlm.models import encoding, loading

AWKWARD = ["Land", "Land Rover", "Rolls-Royce", "3 (three)", "a|b", "C++", 'say "hi"', "back\\slash", ".net", "Škoda"]
AWKWARD += ["[x]{2}^$", "a.b*c?", "#1 & ~co", "🚗"]


@pytest.fixture
def awkward():
    return Task(name="t", source={"folder": "photos"}, labels=AWKWARD, prompt={"user": "Which?\n{labels}"})


@pytest.fixture
def loaded(tiny, image_params):
    return loading.load(tiny, image_params)


def pictures(sizes):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)) for h, w in sizes]


def inputs_for(processor, task, sizes):
    return encoding.encode(processor, task, pictures(sizes))


def test_the_grammar_accepts_exactly_the_answers_in_python_and_in_outlines(awkward):
    regex = decoding.answers_regex(awkward)
    answers = [awkward.answer(label) for label in awkward.labels]
    for answer in answers:
        assert re.fullmatch(regex, answer)
        assert not re.fullmatch(regex, answer[:-1])
    assert not re.fullmatch(regex, awkward.answer("Rolls_Royce"))
    # Outlines' automaton, over single bytes, accepts the same strings.
    vocabulary = Vocabulary(256, {bytes([i]): [i] for i in range(256)})
    index = Index(regex, vocabulary)
    for answer in answers:
        guide = Guide(index)
        for byte in answer.encode():
            assert byte in guide.get_tokens()
            guide.advance(byte)
        assert guide.is_finished() or 256 in guide.get_tokens()


def test_constrained_answers_are_always_labels(loaded, task):
    vlm, processor = loaded
    decode = decoding.outlines(vlm, processor, task)
    inputs = inputs_for(processor, task, [(128, 128)] * 5)
    for _ in range(2):  # the grammar is reset for the second batch
        texts = decode(inputs).texts
        assert all(text in {task.answer(label) for label in task.labels} for text in texts)


def test_labels_with_quotes_brackets_and_emoji_can_be_answered(loaded, awkward):
    vlm, processor = loaded
    texts = decoding.outlines(vlm, processor, awkward)(inputs_for(processor, awkward, [(128, 128)] * 3)).texts
    assert all(awkward.parse(text) in awkward.labels for text in texts)


@pytest.mark.parametrize("constrained", [False, True])
def test_a_batch_of_mixed_sizes_has_the_answers_of_its_single_samples(loaded, task, constrained):
    vlm, processor = loaded
    sizes = [(128, 128), (60, 200), (300, 90), (128, 96)]
    decode = decoding.outlines(vlm, processor, task) if constrained else decoding.raw(vlm, processor, 12)
    batch = inputs_for(processor, task, sizes)
    assert batch["attention_mask"].min() == 0  # the sizes differ in image tokens, so there is padding
    alone = [decode(encoding.encode(processor, task, [picture])).texts[0] for picture in pictures(sizes)]
    assert decode(batch).texts == alone


def test_the_most_probable_label_is_the_answer(loaded, task):
    vlm, processor = loaded
    answers = decoding.most_probable(Posterior(vlm, processor, task), task)(
        inputs_for(processor, task, [(128, 128)] * 5)
    )
    for text, probabilities in zip(answers.texts, answers.probabilities, strict=True):
        assert len(probabilities) == len(task.labels)
        assert text == task.answer(task.labels[int(np.argmax(probabilities))])


def test_free_text_ends_with_the_turn(loaded, task):
    vlm, processor = loaded
    texts = decoding.raw(vlm, processor, 32)(inputs_for(processor, task, [(128, 128)] * 3)).texts
    assert all(text and "<|" not in text and "\n" not in text.strip() for text in texts)
