import json

import pytest
import torch
from transformers import AutoModelForImageTextToText

from vlm.config.errors import InputError
from vlm.config.params import load_params
from vlm.edge import merging
from vlm.models import loading


def test_merged_weights_have_the_same_posterior_as_the_adapter(adapter, make_split, tmp_path):
    params, split = load_params(), make_split("test", 4)
    images = merging.samples(split)
    written, difference = merging.merge(params, adapter, tmp_path / "merged", images)
    assert written.id == str(tmp_path / "merged") and difference < 1e-4
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").eval()
    base, processor = loading.load(params.model, params.image)
    p, unadapted = (merging.posteriors(model, processor, params.task, images) for model in (merged, base))
    assert (p - unadapted).abs().max() > 0.01
    with pytest.raises(InputError, match="merged: exists; name a new folder"):
        merging.merge(params, adapter, tmp_path / "merged", images)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "merged", "test.parquet"]


def test_a_whole_fine_tuned_model_is_copied_as_it_is(tiny, image_params, make_split, tmp_path):
    params, split = load_params(), make_split("test", 4)
    model, processor = loading.load(tiny, image_params)
    with torch.no_grad():
        model.get_parameter("model.language_model.layers.0.feed_forward.w1.weight").mul_(-1)
    model.save_pretrained(tmp_path / "whole")
    processor.save_pretrained(tmp_path / "whole")
    (tmp_path / "whole" / loading.BASE_FILE).write_text(json.dumps({"id": tiny.id, "revision": tiny.revision}))
    images = merging.samples(split)
    expected = merging.posteriors(model, processor, params.task, images)
    written, difference = merging.merge(params, str(tmp_path / "whole"), tmp_path / "merged", images)
    copied = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").eval()
    base, _ = loading.load(tiny, image_params)
    p, unchanged = (merging.posteriors(model, processor, params.task, images) for model in (copied, base))
    assert written.id == str(tmp_path / "merged") and difference == 0
    assert torch.equal(p, expected) and (p - unchanged).abs().max() > 0.01


def test_the_samples_are_spread_over_the_split(make_split):
    assert len(merging.samples(make_split("test", 40))) == 16
    assert len(merging.samples(make_split("train", 3))) == 3
