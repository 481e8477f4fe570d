"""Tests the posterior against an oracle that shares no code with it: full forward passes, one sample and label at a time."""

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.architectures import ARCHITECTURES, build
from vlm.config.errors import InputError
from vlm.config.task import Task
from vlm.evaluation import decoding, repeated_cache, tree_attention
from vlm.evaluation.posterior import Posterior
from vlm.evaluation.trie import Trie, answer_tokens
from vlm.models import encoding

AWKWARD = ["Land", "Land Rover", "Land Rover Sport", 'say "hi"', "back\\slash", ".net", "Škoda", "🚗", "🚕", "C", "C++"]
SIZES = [(100, 60), (64, 120), (60, 60), (300, 90)]


def task_of(labels, image="first", answer="json"):
    prompt = {"system": "You know cars.", "user": "Which?\n{labels}", "image": image}
    return Task(name="t", source={"folder": "photos"}, labels=labels, prompt=prompt, answer=answer)


def pictures(sizes=SIZES):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


@pytest.fixture(scope="session")
def load(tmp_path_factory):
    """load("llava") returns a tiny random model and its processor."""
    loaded = {}

    def get(name):
        if name not in loaded:
            folder = build(name, tmp_path_factory.mktemp(name))
            processor = AutoProcessor.from_pretrained(folder)
            processor.tokenizer.padding_side = "left"
            loaded[name] = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval(), processor
        return loaded[name]

    return get


@torch.inference_mode()
def oracle(vlm, processor, task, image):
    """P(label), computed from the tokens of whole conversations."""

    def inputs(messages, generate):
        text = processor.apply_chat_template(messages, add_generation_prompt=generate, tokenize=False)
        return processor(images=[[image]], text=[text], add_special_tokens=False, return_tensors="pt")

    conversation = task.conversation()
    start = inputs(conversation, True)["input_ids"].shape[1]
    answers, logits = [], []
    for label in task.labels:
        turn = {"role": "assistant", "content": [{"type": "text", "text": task.answer(label)}]}
        whole = inputs([*conversation, turn], False)
        ids = whole["input_ids"][0].tolist()
        end = ids.index(processor.tokenizer.eos_token_id, start) + 1
        answers.append(ids[start:end])
        logits.append(vlm(**whole, use_cache=False).logits[0, start - 1 : end - 1].double())
    probabilities = []
    for answer, scores in zip(answers, logits, strict=True):
        p = 1.0
        for depth, token in enumerate(answer):
            children = sorted({other[depth] for other in answers if other[:depth] == answer[:depth]})
            p *= float(torch.softmax(scores[depth][children], 0)[children.index(token)])
        probabilities.append(p)
    return torch.tensor(probabilities, dtype=torch.float64)


def ask(vlm, processor, task, images):
    """The posterior of `images`, one at a time if it needs batches without padding."""
    asked = Posterior(vlm, processor, task)
    if asked.wants_equal_lengths:
        return torch.cat([asked(encoding.encode(processor, task, [image])) for image in images])
    return asked(encoding.encode(processor, task, images))


@pytest.mark.parametrize("image", ["first", "last"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_equals_the_oracle_batched_and_single(load, name, image):
    vlm, processor = load(name)
    task = task_of(AWKWARD, image)
    expected = torch.stack([oracle(vlm, processor, task, picture) for picture in pictures()])
    assert expected.sum(1) == pytest.approx(torch.ones(len(expected)))
    batched = ask(vlm, processor, task, pictures())
    assert (batched - expected).abs().max() < 1e-4
    single = ask(vlm, processor, task, pictures()[:1])
    assert (single - expected[:1]).abs().max() < 1e-4


def test_the_inputs_of_the_oracle_tests_are_diverse(load):
    """Padding, deeper nodes, and probabilities that depend on the picture."""
    vlm, processor = load("lfm2_vl")
    task = task_of(AWKWARD)
    assert encoding.encode(processor, task, pictures())["attention_mask"].min() == 0
    trie = Trie.of(answer_tokens(processor, task))
    assert len(trie.nodes) > 3
    assert max(map(len, trie.paths)) > 1
    p = ask(vlm, processor, task, pictures())
    assert (p[0] - p[1]).abs().max() > 1e-3


def test_a_shared_prefix_is_used_only_if_the_picture_comes_last(load):
    vlm, processor = load("lfm2_vl")
    assert Posterior(vlm, processor, task_of(AWKWARD, "last")).wants_equal_lengths
    assert not Posterior(vlm, processor, task_of(AWKWARD, "first")).wants_equal_lengths
    vlm, processor = load("qwen2_5_vl")  # multi-dimensional positions
    assert not Posterior(vlm, processor, task_of(AWKWARD, "last")).wants_equal_lengths
    vlm, processor = load("gemma3")  # a picture's tokens attend in both directions
    assert not Posterior(vlm, processor, task_of(AWKWARD, "last")).wants_equal_lengths


@pytest.mark.parametrize("image", ["first", "last"])
def test_a_shared_prefix_works_for_a_whole_batch(load, image):
    vlm, processor = load("lfm2_vl")
    task, same_size = task_of(AWKWARD, image), pictures([(100, 60)] * 5)
    together = Posterior(vlm, processor, task)(encoding.encode(processor, task, same_size))
    expected = torch.stack([oracle(vlm, processor, task, picture) for picture in same_size])
    assert (together - expected).abs().max() < 1e-4


def test_a_model_without_a_cache_has_the_same_posterior(load, monkeypatch):
    vlm, processor = load("lfm2_vl")
    task = task_of(AWKWARD)
    expected = ask(vlm, processor, task, pictures())
    monkeypatch.setattr(vlm.config.get_text_config(), "use_cache", False, raising=False)
    assert (ask(vlm, processor, task, pictures()) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["lfm2_vl", "qwen2_5_vl"])
def test_paths_that_do_not_fit_together_are_run_one_by_one(load, monkeypatch, name):
    vlm, processor = load(name)
    task = task_of(AWKWARD)
    expected = ask(vlm, processor, task, pictures())
    monkeypatch.setattr(tree_attention, "_CPU_TOKENS", 1)  # for lfm2_vl
    monkeypatch.setattr(repeated_cache, "_CPU_BUDGET", 1)  # for the others
    monkeypatch.setattr(repeated_cache, "_FEWEST_AT_ONCE", 1)
    assert (ask(vlm, processor, task, pictures()) - expected).abs().max() < 1e-5


def test_the_model_is_left_unchanged(load):
    vlm, processor = load("lfm2_vl")
    task = task_of(AWKWARD)
    head = vlm.get_output_embeddings()
    first = ask(vlm, processor, task, pictures())
    assert vlm.get_output_embeddings() is head
    assert torch.equal(ask(vlm, processor, task, pictures()), first)


def test_a_task_may_ask_for_bare_labels(load):
    vlm, processor = load("lfm2_vl")
    task = task_of(AWKWARD, answer="label")
    assert processor.tokenizer.decode(answer_tokens(processor, task)[1]) == "Land Rover<|im_end|>"
    expected = torch.stack([oracle(vlm, processor, task, picture) for picture in pictures()])
    assert (ask(vlm, processor, task, pictures()) - expected).abs().max() < 1e-4


def test_a_single_label_has_probability_one(load):
    vlm, processor = load("lfm2_vl")
    assert ask(vlm, processor, task_of(["cat"]), pictures()).tolist() == [[1.0]] * 4


def test_five_hundred_labels(load):
    vlm, processor = load("lfm2_vl")
    words = ["red", "blue", "old", "new", "fast", "slow", "big", "small"]
    labels = [f"{a} {b} {n}" for a in words for b in words for n in range(8)][:500]
    task = task_of(labels).model_copy(update={"prompt": task_of(["x"]).prompt.model_copy(update={"user": "Which?"})})
    image = pictures()[:1]
    found = ask(vlm, processor, task, image)[0]
    assert float(found.sum()) == pytest.approx(1, abs=1e-12)
    few = [labels[0], labels[7], labels[499]]
    assert found.argmax() == oracle(vlm, processor, task, image[0]).argmax()
    # Compare a few with the oracle's probabilities
    expected = oracle(vlm, processor, task, image[0])
    for label in few:
        assert float(found[labels.index(label)]) == pytest.approx(float(expected[labels.index(label)]), abs=1e-6)


label_sets = st.lists(
    st.text(st.sampled_from('ab "\\{}é🚗.'), min_size=1, max_size=4).filter(lambda text: text == text.strip()),
    min_size=1,
    max_size=6,
    unique=True,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(labels=label_sets, answer=st.sampled_from(["json", "label"]))
def test_any_labels_equal_the_oracle(load, labels, answer):
    vlm, processor = load("lfm2_vl")
    task, images = task_of(labels, answer=answer), pictures()[:2]
    found = ask(vlm, processor, task, images)
    assert found.sum(1).tolist() == pytest.approx([1, 1])
    assert (found[1] - oracle(vlm, processor, task, images[1])).abs().max() < 1e-4


def test_labels_with_the_same_tokens_are_refused(load):
    _, processor = load("lfm2_vl")
    lossy = AutoProcessor.from_pretrained(processor.tokenizer.name_or_path)
    lossy.tokenizer.backend_tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    with pytest.raises(InputError, match=r"configs/tasks/t\.yaml: labels: 'Ford' and 'FORD' have the same tokens"):
        answer_tokens(lossy, task_of(["Ford", "FORD"]))


def test_outlines_differs_only_by_greedy_choices_or_other_tokens(load):
    """Every difference has one of the two causes described in vlm/evaluation/posterior.py."""
    from outlines import from_transformers
    from outlines.backends import get_regex_logits_processor

    vlm, processor = load("lfm2_vl")
    task = task_of(AWKWARD)
    rng = np.random.default_rng(1)
    images = [Image.fromarray(rng.integers(0, 255, (60, 60, 3), dtype=np.uint8) // (i % 4 + 1)) for i in range(24)]
    inputs = encoding.encode(processor, task, images)
    probabilities = Posterior(vlm, processor, task)(inputs)
    mask = get_regex_logits_processor("outlines_core", from_transformers(vlm, processor), decoding.answers_regex(task))
    with torch.compiler.set_stance("force_eager"), torch.inference_mode():
        tokens = vlm.generate(**inputs, max_new_tokens=60, do_sample=False, logits_processor=[mask])
    canonical = answer_tokens(processor, task)
    end, start = processor.tokenizer.eos_token_id, inputs["input_ids"].shape[1]
    reasons = {"same": 0, "greedy": 0, "tokens": 0}
    for p, row in zip(probabilities, tokens[:, start:].tolist(), strict=True):
        written = row[: row.index(end) + 1]
        label = task.parse(processor.tokenizer.decode(written[:-1]))
        assert label in task.labels  # both grammars allow the answer
        best, greedy = int(p.argmax()), task.labels.index(label)
        if best == greedy:
            reasons["same"] += 1
        elif written != canonical[greedy]:
            reasons["tokens"] += 1
        else:
            reasons["greedy"] += 1
            depth = next(d for d in range(len(written)) if canonical[best][: d + 1] != written[: d + 1])
            under = {
                token: sum(
                    float(q)
                    for q, ids in zip(p, canonical, strict=True)
                    if ids[: depth + 1] == [*written[:depth], token]
                )
                for token in (written[depth], canonical[best][depth])
            }
            assert under[written[depth]] >= under[canonical[best][depth]]
    assert reasons["greedy"] + reasons["tokens"] > 0, reasons
