import pytest
import torch
from transformers.models.lfm2_vl.image_processing_lfm2_vl import Lfm2VlImageProcessor

from tests.vlm.models.test_encoding import assert_same, pictures
from vlm.models import patches


class Holder:
    """What `patches.of` needs of a processor."""

    def __init__(self, **settings):
        self.image_processor = Lfm2VlImageProcessor(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {},  # those of the real checkpoints
        {"do_image_splitting": False},
        {"use_thumbnail": False},
        {"min_tiles": 1, "max_tiles": 1, "max_image_tokens": 128},
        {"max_image_tokens": 64, "min_image_tokens": 16, "max_tiles": 4},
        {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]},
        {"encoder_patch_size": 14, "tile_size": 448},
        {"rescale_factor": 1 / 127.5},
        {"return_row_col_info": True, "do_resize": False},  # the former is for the text, the latter is not read
    ],
)
def test_they_are_those_of_the_processor_in_any_size(settings):
    processor = Holder(**settings)
    given = pictures((31, 200), (512, 512), (900, 60), (1024, 768), (640, 1500), (1, 1))
    expected = processor.image_processor([[image] for image in given], return_tensors="pt", return_row_col_info=False)
    assert_same(patches.normalised(patches.of(processor)(given)[0], torch.float32), expected)
    made, _ = patches.of(processor)(given[:1])
    assert made["pixel_values"].dtype == torch.uint8
    short = patches.normalised(made, torch.bfloat16)["pixel_values"]
    assert short.shape[1] < expected["pixel_values"].shape[1]
    assert torch.equal(short[0], expected["pixel_values"][0, : short.shape[1]].to(torch.bfloat16))


def test_the_tensor_for_the_pixels_can_be_given_and_bytes_that_it_had_do_not_matter():
    processor, given, made = Holder(), pictures((300, 200), (512, 512)), []

    def full(shape, dtype):
        made.append(torch.full(shape, 255, dtype=dtype))
        return made[-1]

    expected, found = (patches.of(processor)(given, empty=empty)[0] for empty in (None, full))
    assert len(made) == 1 and found["pixel_values"] is made[0]
    expected, found = (patches.normalised(of_one, torch.float32)["pixel_values"] for of_one in (expected, found))
    assert torch.equal(found, expected)


def test_parts_that_are_normalised_one_after_the_other_are_the_whole(monkeypatch):
    made, _ = patches.of(Holder())(pictures((900, 600), (512, 512), (64, 80)))
    parts = []
    for tiles in (100, 2, 1):
        monkeypatch.setattr(patches, "_CPU_PART", tiles * made["pixel_values"][0].numel() * 4)
        parts.append(patches.normalised(made, torch.float32)["pixel_values"])
    assert len(parts[0]) > 3 and torch.equal(parts[0], parts[1]) and torch.equal(parts[0], parts[2])


def test_sizes_that_are_forgotten_are_found_again(monkeypatch):
    made, given = patches.of(Holder()), pictures((300, 200), (64, 80), (900, 600))
    expected = [layout for _, layouts in (made([picture]) for picture in given) for layout in layouts]
    monkeypatch.setattr(patches, "_MOST_LAYOUTS", len(made._layouts))
    assert made(given)[1] == expected and made(pictures((301, 777)))[1] != expected[:1]
    assert len(made._layouts) == 1
    assert made(given)[1] == expected


@pytest.mark.parametrize("settings", [{"do_normalize": False}, {"do_rescale": False}, {"do_pad": False}])
def test_settings_with_which_they_would_be_others_are_left_to_the_processor(settings):
    assert patches.of(Holder(**settings)) is None


def test_another_version_of_the_processor_is_left_to_itself(monkeypatch):
    original = Lfm2VlImageProcessor.rescale_and_normalize

    def changed(self, images, *rest):
        return original(self, images, *rest) * 1.0001

    monkeypatch.setattr(Lfm2VlImageProcessor, "rescale_and_normalize", changed)
    assert patches.of(Holder()) is None
    monkeypatch.undo()
    monkeypatch.setattr(patches, "_SETTINGS", (*patches._SETTINGS, "do_pad"))  # an argument that it does not take
    assert patches.of(Holder()) is None
    monkeypatch.undo()
    preprocess = Lfm2VlImageProcessor._preprocess

    def other_type(self, *arguments, **named):
        found = preprocess(self, *arguments, **named)
        found["pixel_attention_mask"] = found["pixel_attention_mask"].long()
        return found

    monkeypatch.setattr(Lfm2VlImageProcessor, "_preprocess", other_type)
    assert patches.of(Holder()) is None
    monkeypatch.undo()
    assert patches.of(Holder()) is not None
