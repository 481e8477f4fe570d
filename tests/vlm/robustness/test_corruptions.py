from typing import get_args

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageFilter

from vlm.config.params import Corruption
from vlm.robustness.corruptions import CORRUPTIONS, corrupted


def picture(width=96, height=64):
    """Smooth shapes of all brightnesses."""
    noise = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def pixels(image):
    """(height, width, 3), float, 0 to 1."""
    return np.asarray(image, float) / 255


def test_params_yaml_accepts_exactly_the_corruptions_that_there_are():
    assert list(CORRUPTIONS) == list(get_args(Corruption))


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_a_picture_is_corrupted_in_the_same_way_every_time_and_keeps_its_size(corruption):
    original = picture()
    before = original.tobytes()
    for severity in (1, 2, 3, 4, 5):
        result = corrupted(original, corruption, severity, "test-3")
        assert (result.size, result.mode) == (original.size, "RGB")
        assert result.tobytes() == corrupted(original, corruption, severity, "test-3").tobytes() != before
    assert original.tobytes() == before


@pytest.mark.parametrize("corruption", ["gaussian_noise", "impulse_noise", "motion_blur", "spatter"])
def test_what_is_random_differs_from_sample_to_sample(corruption):
    results = {corrupted(picture(), corruption, 3, f"test-{i}").tobytes() for i in range(5)}
    assert len(results) == 5


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_a_higher_severity_changes_more(corruption):
    original = picture(224, 224)
    distances = [
        np.mean([abs(pixels(corrupted(original, corruption, severity, str(i))) - pixels(original)) for i in range(5)])
        for severity in (1, 2, 3, 4, 5)
    ]
    assert distances == sorted(distances)
    assert distances[-1] > 1.3 * distances[0]


@pytest.mark.parametrize("corruption", CORRUPTIONS)
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (3, 200), (200, 3)])
def test_pictures_of_any_size_can_be_corrupted(corruption, size):
    for severity in (1, 5):
        assert corrupted(Image.new("RGB", size, "teal"), corruption, severity, "a").size == size


def test_contrast_moves_every_channel_towards_its_mean():
    original = picture()
    mean = pixels(original).mean(axis=(0, 1))
    expected = mean + 0.1 * (pixels(original) - mean)
    assert pixels(corrupted(original, "contrast", 4, "a")) == pytest.approx(expected, abs=0.51 / 255)


def test_gaussian_noise_has_the_standard_deviation_of_its_severity():
    grey = Image.new("RGB", (200, 200), (128, 128, 128))
    noise = pixels(corrupted(grey, "gaussian_noise", 1, "a")) - 128 / 255
    assert noise.std() == pytest.approx(0.08, rel=0.02)
    assert abs(noise.mean()) < 0.001
    assert abs(np.corrcoef(noise.reshape(-1, 3).T) - np.eye(3)).max() < 0.02  # every channel has its own


def test_impulse_noise_replaces_as_many_values_by_black_as_by_white():
    values = pixels(corrupted(Image.new("RGB", (200, 200), (128, 128, 128)), "impulse_noise", 5, "a"))
    assert [(values == value).mean() for value in (0, 1)] == pytest.approx([0.135, 0.135], abs=0.005)
    assert ((values == 128 / 255) | (values == 0) | (values == 1)).all()


def test_pixelate_makes_blocks_that_have_the_mean_of_their_pixels():
    blocks = pixels(picture()).reshape(16, 4, 24, 4, 3)
    result = pixels(corrupted(picture(), "pixelate", 5, "a")).reshape(blocks.shape)
    expected = np.broadcast_to(blocks.mean(axis=(1, 3), keepdims=True), blocks.shape)
    assert result == pytest.approx(expected, abs=1.01 / 255)


def test_motion_blur_draws_a_point_into_a_line_of_the_same_light():
    point = Image.new("RGB", (101, 101))
    point.putpixel((50, 50), (255, 255, 255))
    for i in range(20):
        line = pixels(corrupted(point, "motion_blur", 2, str(i)))[..., 0]
        assert line.sum() == pytest.approx(1, abs=0.05)
        rows, columns = np.nonzero(line)
        # One-sided, from the point on, not longer than 31 pixels, and nearer to the horizontal than to the vertical
        assert columns.max() == 50
        assert 8 < np.ptp(columns) <= 30
        assert np.ptp(rows) <= np.ptp(columns) + 1


def test_spatter_is_bright_water_at_low_severities_and_brown_mud_at_high_ones():
    grey = Image.new("RGB", (224, 224), (100, 100, 100))
    for severity in (1, 2, 3):
        change = pixels(corrupted(grey, "spatter", severity, "a")) - 100 / 255
        assert change.min() >= 0
        wet = change[..., 2] > 0.05
        assert 0.01 < wet.mean() < 0.3
        assert (change[wet][:, 2] > change[wet][:, 0]).all()  # pale turquoise
    for severity in (4, 5):
        result = corrupted(grey, "spatter", severity, "a")
        covered = ImageChops.difference(result, grey).convert("L").point(lambda value: 255 * (value > 20))
        assert 0.1 < pixels(covered.convert("RGB")).mean() < 0.6
        inside = np.asarray(covered.filter(ImageFilter.MinFilter(3))) > 0
        assert np.asarray(result)[inside].mean(axis=0) == pytest.approx([63, 42, 20], abs=12)


def test_jpeg_compression_has_the_quality_of_its_severity(tmp_path):
    picture().save(tmp_path / "a.jpg", quality=7)
    expected = Image.open(tmp_path / "a.jpg").convert("RGB")
    assert corrupted(picture(), "jpeg_compression", 5, "a").tobytes() == expected.tobytes()
