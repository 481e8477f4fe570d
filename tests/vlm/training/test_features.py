import pytest
import torch

from tests.architectures import ARCHITECTURES, QUESTION, loaded, write_pictures
from vlm.config.events import Log, Progress
from vlm.training import features

SIZES = [(100, 60), (64, 120), (60, 60), (100, 60), (300, 90)] * 4
ROWS = [4, 0, 17]
COMPUTED = [Progress(done, 20, "picture encoded") for done in (16, 20)]  # 16 pictures at once
KEPT = {"lfm2_vl", "gemma3"}  # models that continue from the last hidden state of a tower that gets all pixels


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("data") / "train.parquet", SIZES)


@pytest.fixture
def prepared(split, tmp_path):
    def prepare(name, budget=1.0, directory=tmp_path / "features", most=16):
        """`most` is the number of tiles for which the vision tower has memory."""

        def refuse(tower, args, kwargs):
            if len(kwargs["pixel_values"]) > most:
                raise torch.OutOfMemoryError("CUDA out of memory.")

        model, processor, load = loaded(name, tmp_path / name, split)
        with torch.inference_mode():
            before = model(**load(ROWS)).logits
        events = []
        if most < 16:
            model.base_model.vision_tower.register_forward_pre_hook(refuse, with_kwargs=True)
        kept = features.precompute(model, processor, QUESTION, [split], directory, budget, events.append)
        return model, load, before, kept, events

    return prepare


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_model_computes_the_same(prepared, split, name):
    """With cached tower outputs, or, where they cannot be cached, unchanged."""
    model, load, before, kept, events = prepared(name)
    assert (kept is not None) == (name in KEPT)
    with torch.inference_mode():
        inputs = load(ROWS) if kept is None else kept[split](ROWS)
        assert torch.allclose(model(**inputs).logits, before, atol=1e-4)
    if kept is None:
        assert [type(event) for event in events] == [Log]
    else:
        assert events == COMPUTED
        plain = load(ROWS)
        assert set(plain) == set(inputs)
        for key in set(plain) - {"pixel_values"}:
            assert torch.equal(plain[key], inputs[key]), key


def test_padding_that_no_tile_needs_is_not_stored(prepared, split):
    """The processor pads all tiles to 64 patches."""
    _, load, _, kept, _ = prepared("lfm2_vl")
    patches = load(range(20))["pixel_attention_mask"].sum(1)
    assert kept[split].tiles.shape[1] == patches.max() == 56
    assert kept[split]([2])["pixel_values"].shape[1] == patches[2] == 16


def test_features_over_the_budget_are_not_cached(prepared):
    model, load, before, kept, events = prepared("lfm2_vl", budget=1e-6)
    assert kept is None
    assert "more than finetune.cache_image_features" in events[-1].text
    with torch.inference_mode():
        assert torch.equal(model(**load(ROWS)).logits, before)


def test_prompt_lengths_are_those_of_the_loader(prepared, split):
    _, load, _, kept, _ = prepared("lfm2_vl")
    lengths = kept[split].lengths(range(5))
    assert lengths == [load([row])["input_ids"].shape[1] for row in range(5)]
    assert len(set(lengths)) > 1


def test_an_interrupted_run_recomputes_only_unfinished_features(prepared, split, tmp_path):
    """After an interruption the features are equal to the last bit, and finished ones are not computed again."""
    _, _, _, one, events = prepared("lfm2_vl")
    assert events == COMPUTED
    kept = one[split].tiles.clone()
    _, _, _, again, events = prepared("lfm2_vl")
    assert torch.equal(kept, again[split].tiles)
    assert events == []
    (tmp_path / "features" / "complete").unlink()  # as if killed in the middle
    _, _, _, again, events = prepared("lfm2_vl")
    assert torch.equal(kept, again[split].tiles)
    assert events == COMPUTED


def test_running_out_of_memory_encodes_fewer_pictures_at_once(prepared, split, tmp_path):
    model, _, before, parts, events = prepared("lfm2_vl", directory=tmp_path / "parts", most=5)
    with torch.inference_mode():
        assert torch.allclose(model(**parts[split](ROWS)).logits, before, atol=1e-4)
    assert [event for event in events if isinstance(event, Progress)] == COMPUTED
    assert any(isinstance(event, Log) and "out of memory with 16 samples" in event.text for event in events)
