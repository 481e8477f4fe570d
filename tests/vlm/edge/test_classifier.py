import json
from pathlib import Path

import numpy as np
import pytest

from vlm.config.errors import InputError
from vlm.config.params import load_params
from vlm.edge.classifier import Classifier, grammar
from vlm.evaluation import prior
from vlm.models import encoding, loading


@pytest.fixture
def classifier(at_root):
    params = load_params()
    return Classifier.of(params, loading.load_processor(params.model, params.image), "0" * 64)


def test_it_describes_the_task_and_the_prompt(classifier):
    params = load_params()
    processor = loading.load_processor(params.model, params.image)
    image = encoding.blank(processor, params.task, (128, 96))
    tokens = classifier.tokens
    assert image["input_ids"].shape[1] == tokens.before + tokens.around_image + 4 * 3 + tokens.after
    assert tokens.around_image == 2
    assert classifier.prompt.before.startswith(processor.tokenizer.bos_token)
    assert processor.image_token not in classifier.prompt.before + classifier.prompt.after
    decoded = [processor.tokenizer.decode(ids) for ids in tokens.answers]
    assert decoded == [answer + processor.tokenizer.eos_token for answer in classifier.answers]
    assert json.loads(classifier.answers[3]) == {"pred_class": classifier.labels[3]}
    assert classifier.image.model_dump() == {
        "multiple": 32,
        "min_tokens": 8,
        "max_tokens": 16,
        "tolerance": 2.0,
        "resample": "bilinear",
    }


def test_limits_of_params_yaml_and_other_filters_are_in_it(at_root):
    params = load_params()
    processor = loading.load_processor(params.model, params.image.model_copy(update={"max_tokens": 8}))
    processor.image_processor.resample = 3
    image = Classifier.of(params, processor, "0" * 64).image
    assert (image.min_tokens, image.max_tokens, image.resample) == (4, 8, "bicubic")
    processor.image_processor.resample = 0
    with pytest.raises(InputError, match="resample: 0 cannot be exported"):
        Classifier.of(params, processor, "0" * 64)


def test_it_is_read_as_it_was_written(classifier, tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"abc")
    (tmp_path / "mmproj.gguf").write_bytes(b"")
    complete = classifier.with_files(tmp_path, ("Q4_0", "F16"))
    complete.save(tmp_path)
    assert Classifier.load(tmp_path) == complete
    assert list(tmp_path.glob(".*")) == []
    files = json.loads((tmp_path / "classifier.json").read_text(encoding="utf-8"))["files"]
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files["model.gguf"] == {"type": "Q4_0", "bytes": 3, "sha256": sha256}
    assert (files["mmproj.gguf"]["type"], files["mmproj.gguf"]["bytes"]) == ("F16", 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read; `dvc repro export` writes it"),
        ("labels: [a]", "is not JSON"),
        ("[1]", "should be a mapping"),
        ('{"version": 1, "labels": 3}', "task: is missing"),
        ('{"version": 2}', "version: 2"),
    ],
)
def test_a_missing_or_foreign_file_is_one_line(text, message, tmp_path):
    if text is not None:
        Path(tmp_path, "classifier.json").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        Classifier.load(tmp_path)
    assert str(error.value).startswith(str(tmp_path / "classifier.json"))
    assert "\n" not in str(error.value)


def test_offsets_are_read_as_they_were_written_and_there_is_one_for_each_label(classifier, tmp_path):
    offsets = [0.1 * label - 2 for label in range(len(classifier.labels))]
    classifier.model_copy(update={"offsets": tuple(offsets)}).save(tmp_path)
    assert list(Classifier.load(tmp_path).offsets) == offsets
    values = json.loads((tmp_path / "classifier.json").read_text(encoding="utf-8"))
    (tmp_path / "classifier.json").write_text(json.dumps(values | {"offsets": offsets[1:]}), encoding="utf-8")
    with pytest.raises(InputError, match=r"classifier.json: offsets: has 30 numbers for 31 labels$"):
        Classifier.load(tmp_path)
    del values["offsets"]  # as of an export before there were any
    (tmp_path / "classifier.json").write_text(json.dumps(values), encoding="utf-8")
    assert Classifier.load(tmp_path).offsets == ()


def test_the_correction_is_that_of_pytorchs_answers(classifier):
    plain = np.random.default_rng(0).dirichlet(np.ones(31))
    assert classifier.corrected(plain) is plain
    entry = {"method": "batch", "samples": 9, "strength": 0.7, "probabilities": [(i + 1) / 496 for i in range(31)]}
    corrected = classifier.model_copy(update={"offsets": tuple(prior.offsets(entry))}).corrected(plain)
    by_hand = plain / (np.arange(1, 32) / 496) ** 0.7
    assert corrected == pytest.approx(by_hand / by_hand.sum(), rel=1e-12)


def test_texts_are_quoted_in_the_grammar():
    assert grammar(['a "b"', "c\\d\n"]) == 'root ::= "a \\"b\\"" |\n  "c\\\\d\\n"\n'
