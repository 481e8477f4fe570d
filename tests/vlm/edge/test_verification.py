import os

import numpy as np
import pytest
from transformers import AutoProcessor

from tests.vlm.edge import lfm2_vl
from vlm.config.params import load_params
from vlm.data import dataset
from vlm.edge import gguf_files, merging, verification
from vlm.edge.classifier import Classifier, NotExportable
from vlm.evaluation import batching
from vlm.models import loading


@pytest.fixture
def checked(exported, task, make_split, tmp_path):
    """checked(image={"max_tokens": 8}) verifies the exported model, with values of classifier.json changed."""
    params = load_params()
    model, processor = loading.load(params.model, params.image)
    images = [batching.decoded(row.image) for row in dataset.Reader(make_split("test", 3)).rows(range(3))]
    expected = merging.posteriors(model, processor, task, images).numpy()
    folder = tmp_path / "changed"
    folder.mkdir()
    for name in ("model.gguf", "mmproj.gguf"):
        os.link(exported / name, folder / name)

    def verify(expected=expected, **changes):
        known = Classifier.load(exported)
        parts = {part: getattr(known, part).model_copy(update=values) for part, values in changes.items()}
        known.model_copy(update=parts).save(folder)
        return verification.verify(folder, processor, task, images, expected)

    verify.expected = expected
    return verify


def test_a_faithful_export_passes(checked):
    assert 0 < checked() < 0.01


@pytest.mark.parametrize("limits", [(64, 256), (8, 9), (4, 8)])
def test_other_limits_of_image_tokens_are_noticed(limits, checked):
    with pytest.raises(NotExportable, match=r"picture 1 of 3: llama.cpp's prompt has \d+ tokens, PyTorch's \d+"):
        checked(image={"min_tokens": limits[0], "max_tokens": limits[1]})


def test_a_doubled_bos_is_noticed(checked, exported):
    before = Classifier.load(exported).prompt.before
    with pytest.raises(NotExportable, match="prompt has 150 tokens, PyTorch's 149"):
        checked(prompt={"before": "<|startoftext|>" + before})


def test_changed_tokens_of_an_answer_are_noticed(checked, exported):
    answers = [list(ids) for ids in Classifier.load(exported).tokens.answers]
    answers[4][-2] += 1
    with pytest.raises(NotExportable, match=r"Bentley.* has the tokens .*, and should have"):
        checked(tokens={"answers": tuple(map(tuple, answers))})


def test_other_probabilities_are_noticed(checked):
    expected = checked.expected[:, ::-1]
    with pytest.raises(NotExportable, match=r"picture 1 of 3: llama.cpp's answer is '.*' \(0.*\), PyTorch's '.*' \(0"):
        checked(expected=expected)


def test_a_wrong_pre_tokenizer_is_noticed(task, at_root, tmp_path):
    """LFM2's tokenizer has at most three digits in a token."""
    source, folder = lfm2_vl.build(tmp_path / "source"), tmp_path / "exported"
    gguf_files.write(source, folder, "F16", "F16")
    processor = AutoProcessor.from_pretrained(source)
    task = task.model_copy(update={"labels": ("Audi 4444", "Audi 55555"), "aliases": {}})
    params = load_params().model_copy(update={"task": task})
    Classifier.of(params, processor, "0" * 64).with_files(folder, ("F16", "F16")).save(folder)
    nothing = np.empty((0, 2))
    assert verification.verify(folder, processor, task, [], nothing) == 0
    key = b"tokenizer.ggml.pre" + (8).to_bytes(4, "little") + (4).to_bytes(8, "little")  # a text of four characters
    content = (folder / "model.gguf").read_bytes()
    assert content.count(key + b"lfm2") == 1
    (folder / "model.gguf").write_bytes(content.replace(key + b"lfm2", key + b"olmo"))
    with pytest.raises(NotExportable, match=r"llama.cpp makes other tokens of"):
        verification.verify(folder, processor, task, [], nothing)
