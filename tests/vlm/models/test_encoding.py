from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tests import architectures
from tests.architectures import QUESTION
from vlm.config.errors import InputError
from vlm.config.models import ModelConfig
from vlm.config.params import ImageParams
from vlm.models import chat, encoding, loading, patches


def pictures(*sizes):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)) for width, height in sizes]


def of_the_processor(processor, images):
    """What the processor makes of all pictures."""
    text = [chat.prompt(processor, QUESTION)] * len(images)
    images = [[image] for image in images]
    return processor(images=images, text=text, padding=True, add_special_tokens=False, return_tensors="pt")


def assert_same(found, expected):
    """Equal, but for columns of `expected` that are padding for all tiles, and that only LFM2-VL has."""
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        if found[name].shape != value.shape:
            assert name in ("pixel_values", "pixel_attention_mask")
            most = int(expected["pixel_attention_mask"].sum(1).max())
            assert found[name].shape[1] == most and not value[:, most:].any()
            value = value[:, :most]
        assert value.dtype == found[name].dtype and torch.equal(value, found[name]), name


@pytest.mark.parametrize("reproduced", [True, False])
@pytest.mark.parametrize("splitting", [True, None])
@pytest.mark.parametrize("name", architectures.ARCHITECTURES)
def test_a_batch_is_that_of_the_processor(name, splitting, reproduced, tmp_path, monkeypatch):
    """Pictures of several sizes: prompts are padded, and with splitting Idefics3 pads the number of tiles.

    LFM2-VL's results are reproduced, or the processor is given a few pictures at a time, as are all others.
    """
    if name != "lfm2_vl" and not reproduced:
        return
    config = ModelConfig(name=name, id=str(architectures.build(name, tmp_path)))
    try:
        processor = loading.load_processor(config, ImageParams(splitting=splitting))
    except InputError:
        assert splitting and name in ("qwen2_5_vl", "llava", "gemma3")  # which cannot split
        return
    given = pictures((64, 64), (200, 90), (64, 64), (90, 300), (64, 64), (64, 64))
    expected = of_the_processor(processor, given)
    assert (patches.of(processor) is not None) == (name == "lfm2_vl")
    if not reproduced:
        monkeypatch.setattr(patches, "of", lambda processor: None)
    monkeypatch.setattr(encoding, "_PART", 500_000)  # bytes: several parts
    numbers, preprocess = [], type(processor.image_processor).preprocess

    def counted(self, images, *arguments, **named):
        numbers.append(len(images))
        return preprocess(self, images, *arguments, **named)

    monkeypatch.setattr(type(processor.image_processor), "preprocess", counted)
    on_cpu = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32)
    found = encoding.to_device(encoding.encode(processor, QUESTION, given, torch.float32), on_cpu)
    if name != "lfm2_vl" or not reproduced:
        assert len(numbers) > 1 and numbers[0] < len(given)
    assert_same(found, expected)
    on_cpu.dtype = torch.bfloat16
    lengths = encoding.lengths(processor, QUESTION, {image.size for image in given})
    assert [lengths[image.size] for image in given] == expected["attention_mask"].sum(1).tolist()
    halved = encoding.to_device(encoding.encode(processor, QUESTION, given, torch.bfloat16), on_cpu)
    assert halved["pixel_values"].dtype == torch.bfloat16 and halved["input_ids"].dtype == torch.int64
    assert torch.equal(halved["pixel_values"], found["pixel_values"].to(torch.bfloat16))


def test_sizes_and_splitting_that_change_later_are_respected(tiny, image_params):
    processor = loading.load_processor(tiny, image_params)
    given = pictures((300, 200), (64, 64))
    for tokens, splitting, thumbnail in ((64, False, True), (16, False, True), (16, True, True), (16, True, False)):
        processor.image_processor.max_image_tokens = tokens
        processor.image_processor.do_image_splitting = splitting
        processor.image_processor.use_thumbnail = thumbnail
        expected, found = of_the_processor(processor, given), encoding.encode(processor, QUESTION, given)
        assert_same(found, expected)


def test_bytes_become_numbers_in_32_bits_before_they_get_the_models_dtype(tiny, image_params):
    """With a mean that bfloat16 cannot represent, unlike 127.5."""
    processor, given = loading.load_processor(tiny, image_params), pictures((300, 200), (64, 64))
    settings = processor.image_processor.to_dict() | {"image_mean": [0.481, 0.457, 0.408]}
    processor.image_processor = type(processor.image_processor)(**settings)
    assert patches.of(processor) is not None
    model = SimpleNamespace(device=torch.device("cpu"), dtype=torch.bfloat16)
    found = encoding.to_device(encoding.encode(processor, QUESTION, given, torch.bfloat16), model)
    expected = of_the_processor(processor, given)
    assert_same(found, expected | {"pixel_values": expected["pixel_values"].bfloat16()})


def test_patches_that_are_padding_in_the_whole_batch_are_left_out(tiny, image_params):
    """SigLIP 2's processor pads all pictures to as many patches as the largest may have, here 64."""
    model, processor = loading.load(tiny, image_params)
    given = pictures((128, 96), (96, 96))
    whole, short = of_the_processor(processor, given), encoding.encode(processor, QUESTION, given)
    assert whole["pixel_values"].shape == (2, 64, 768)
    patches = short["pixel_attention_mask"].sum(1)
    assert short["pixel_values"].shape == (2, patches.max(), 768) and patches.max() < 64
    assert torch.equal(short["pixel_values"], whole["pixel_values"][:, : patches.max()])
    with torch.no_grad():
        expected, found = (model(**inputs).logits for inputs in (whole, short))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_pictures_with_the_same_layout_are_tokenized_once(tiny, image_params, monkeypatch):
    processor = loading.load_processor(tiny, image_params)
    given = pictures(*((width, height) for width in range(180, 200) for height in (200, 210)))
    expected, asked = of_the_processor(processor, given), []
    blank = encoding._blank
    monkeypatch.setattr(encoding, "_blank", lambda *arguments: asked.append(arguments) or blank(*arguments))
    for _ in range(2):
        found = encoding.encode(processor, QUESTION, given)
        assert_same(found, expected)
    assert len(asked) < 5
    lengths = encoding.lengths(processor, QUESTION, [image.size for image in given])
    assert list(lengths.values()) == expected["attention_mask"].sum(1).tolist()
    assert len(asked) < 5


def test_a_tokenizer_is_saved_as_it_was_loaded_whatever_it_was_asked(tiny, image_params, tmp_path):
    saved = []
    for count in (0, 1, 3):
        processor = loading.load_processor(tiny, image_params)
        if count:
            encoding.encode(processor, QUESTION, pictures(*[(90, 60), (64, 64), (300, 20)][:count]))
        processor.save_pretrained(tmp_path / str(count))
        saved.append((tmp_path / str(count) / "tokenizer.json").read_bytes())
    assert saved[0] == saved[1] == saved[2]
