import pytest
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


def test_the_samples_are_spread_over_the_split(make_split):
    assert len(merging.samples(make_split("test", 40))) == 16
    assert len(merging.samples(make_split("train", 3))) == 3
