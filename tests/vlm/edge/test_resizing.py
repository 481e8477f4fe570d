import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.lfm2_vl.image_processing_lfm2_vl import Lfm2VlImageProcessor

from vlm.config.errors import InputError
from vlm.edge import resizing
from vlm.edge.classifier import ImageLimits

FILTERS = {"lanczos": 1, "bilinear": 2, "bicubic": 3}


def limits(fewest, most, resample="bilinear"):
    return ImageLimits(multiple=32, min_tokens=fewest, max_tokens=most, tolerance=2.0, resample=resample)


@settings(max_examples=500)
@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([(8, 16), (64, 256), (128, 256), (32, 64), (5, 11)]))
def test_sizes_are_the_processors(width, height, bounds):
    processor = Lfm2VlImageProcessor()
    expected = processor.smart_resize(height, width, 2, *bounds, 16)
    if expected[0] * expected[1] // 32**2 > bounds[1]:
        with pytest.raises(InputError, match=f"{width} x {height} pixels is too narrow"):
            resizing.target(width, height, limits(*bounds))
    else:
        assert resizing.target(width, height, limits(*bounds)) == expected


@pytest.mark.parametrize("resample", FILTERS)
@pytest.mark.parametrize("size", [(640, 480), (90, 60), (31, 200), (128, 128)])
def test_pixels_are_the_processors(size, resample):
    """Except for rounding: of one step of 255 in the filter, and at dark and light edges if a filter overshoots."""
    noise = np.random.default_rng(1).integers(0, 256, (size[1] // 10 + 1, size[0] // 10 + 1, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
    processor = Lfm2VlImageProcessor(
        do_image_splitting=False, min_image_tokens=8, max_image_tokens=16, resample=FILTERS[resample]
    )
    processed = processor([picture], do_normalize=False, do_rescale=False, return_tensors="np")
    rows, columns = processed["spatial_shapes"][0]
    patches = processed["pixel_values"][0, : rows * columns].reshape(rows, columns, 16, 16, 3)
    expected = patches.transpose(0, 2, 1, 3, 4).reshape(16 * rows, 16 * columns, 3)
    found = np.asarray(resizing.resized(picture, limits(8, 16, resample)), float)
    assert found.shape == expected.shape
    difference = np.abs(found - expected)
    assert difference.max() <= (1 if resample == "bilinear" else 8)
    assert difference.mean() < 0.2


def test_other_modes_become_rgb_and_transparency_white():
    grey = Image.new("L", (64, 128), 100)
    assert resizing.resized(grey, limits(8, 16)).getpixel((5, 5)) == (100, 100, 100)
    red = Image.new("P", (128, 64))
    red.putpalette([255, 0, 0])
    assert resizing.resized(red, limits(8, 16)).getpixel((5, 5)) == (255, 0, 0)
    clear = Image.new("RGBA", (128, 128), (10, 20, 30, 0))
    clear.paste((10, 20, 30, 255), (0, 0, 64, 128))
    found = resizing.resized(clear, limits(8, 16))
    assert (found.mode, found.getpixel((5, 5)), found.getpixel((120, 5))) == ("RGB", (10, 20, 30), (255, 255, 255))
