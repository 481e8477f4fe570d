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


@pytest.mark.parametrize("splitting", [True, None])
@pytest.mark.parametrize("name", architectures.ARCHITECTURES)
def test_a_batch_is_that_of_the_processor(name, splitting, tmp_path):
    """Pictures of several sizes: prompts are padded, and with splitting Idefics3 pads the number of tiles."""
    config = ModelConfig(name=name, id=str(architectures.build(name, tmp_path)))
    try:
        processor = loading.load_processor(config, ImageParams(splitting=splitting))
    except InputError:
        assert splitting and name in ("qwen2_5_vl", "llava", "gemma3")  # which cannot split
        return
    given = pictures((64, 64), (200, 90), (64, 64), (90, 300), (64, 64), (64, 64))
    expected, found = of_the_processor(processor, given), encoding.encode(processor, QUESTION, given, torch.float32)
    assert (patches.of(processor) is not None) == (name == "lfm2_vl")
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        assert value.dtype == found[key].dtype and torch.equal(value, found[key]), key
    halved = encoding.encode(processor, QUESTION, given, torch.bfloat16)
    assert halved["pixel_values"].dtype == torch.bfloat16 and halved["input_ids"].dtype == torch.int64
    assert torch.equal(halved["pixel_values"], expected["pixel_values"].to(torch.bfloat16))


def test_settings_that_change_later_are_respected(tiny, image_params):
    processor = loading.load_processor(tiny, image_params)
    given = pictures((300, 200), (64, 64))
    for tokens in (64, 16):
        processor.image_processor.max_image_tokens = tokens
        expected, found = of_the_processor(processor, given), encoding.encode(processor, QUESTION, given)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in found)


def test_patches_that_are_padding_in_the_whole_batch_are_left_out(tiny, image_params):
    """SigLIP 2's processor pads all pictures to as many patches as the largest may have, here 64."""
    model, processor = loading.load(tiny, image_params)
    given = pictures((128, 96), (96, 96))
    whole, short = of_the_processor(processor, given), encoding.encode(processor, QUESTION, given, compact=True)
    assert whole["pixel_values"].shape == (2, 64, 768)
    patches = short["pixel_attention_mask"].sum(1)
    assert short["pixel_values"].shape == (2, patches.max(), 768) and patches.max() < 64
    assert torch.equal(short["pixel_values"], whole["pixel_values"][:, : patches.max()])
    with torch.no_grad():
        expected, found = (model(**inputs).logits for inputs in (whole, short))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
