import numpy as np
import pytest
from PIL import Image, ImageFilter

from tests.vlm.audit.samples import encoded, opened, write_splits
from vlm.audit import pictures
from vlm.config.errors import InputError
from vlm.sources import badges


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def look_at(rows):
    """What `bad_pictures` says of `rows`, a test split of (id, picture file)."""
    splits = write_splits(test=[(id_, "acura", picture) for id_, picture in rows])
    return pictures.bad_pictures(pictures.looks(splits, lambda event: None))


def faults(rows):
    """{id: kinds} of the bad pictures among `rows`, of which there are few."""
    found, (suspects, common) = {}, look_at(rows)
    assert common == []
    for suspect in suspects:
        assert suspect.sample.split == "test"
        assert 0 <= suspect.score <= 1
        found.setdefault(suspect.sample.id, []).append(suspect.kind)
    return found


def good(photos):
    return [(f"good-{i}", picture) for i, (_, picture) in enumerate(photos)]


def test_ordinary_photos_have_no_fault(photos):
    assert faults(good(photos)) == {}


def test_a_picture_of_one_colour_is_blank_with_and_without_noise(photos, wall):
    black, white = (encoded(Image.new("RGB", (128, 128), colour)) for colour in ("black", "white"))
    rows = [*good(photos), ("wall", wall), ("black", black), ("white", white)]
    assert faults(rows) == {"wall": ["blank"], "black": ["blank"], "white": ["blank"]}


def patterned(pattern, colours):
    """A picture of 128 x 128 pixels in stripes or squares of 4 pixels."""
    down, across = np.indices((128, 128)) // 4
    return encoded(Image.fromarray(np.array(colours, np.uint8)[pattern(down, across) % 2]), quality=95)


STRIPES = patterned(lambda down, across: across, [(0, 0, 0), (255, 255, 255)])
CHECKERBOARD = patterned(lambda down, across: down + across, [(0, 0, 0), (255, 255, 255)])
COLOURED = patterned(lambda down, across: down, [(220, 60, 60), (60, 130, 250)])  # red and blue, nearly as bright


def test_a_fine_pattern_is_not_blank(photos):
    rows = [*good(photos), ("stripes", STRIPES), ("checkerboard", CHECKERBOARD), ("coloured", COLOURED)]
    assert faults(rows) == {}


def test_blurred_and_dark_pictures(photos):
    picture = opened(photos[0][1])
    blurred = encoded(picture.filter(ImageFilter.GaussianBlur(24)), quality=95)
    dark = encoded(picture.point(lambda level: level // 6), "PNG")
    found = faults([*good(photos), ("blurred", blurred), ("dark", dark)])
    assert found.keys() == {"blurred", "dark"}
    assert found["blurred"] == ["blurred"]
    assert "dark" in found["dark"]


def test_sizes_are_odd_only_if_they_differ_much_from_most(photos):
    picture = opened(photos[0][1])
    sizes = {"tiny": (16, 16), "strip": (400, 40), "half": (64, 64), "larger": (300, 200)}
    rows = [(name, encoded(picture.resize(size))) for name, size in sizes.items()]
    assert faults([*good(photos), *rows]) == {"tiny": ["odd_size"], "strip": ["odd_size"]}


@pytest.mark.parametrize("severity", [0.25, 1.0])
def test_hard_photos_are_not_blurred(severity):
    rendered = badges.render_split(["acura", "bmw"], 40, 2, 0, severity, workers=1)
    assert faults([(str(i), picture) for i, (_, picture) in enumerate(rendered)]) == {}


def test_what_most_pictures_have_in_common_is_no_fault(photos):
    dark = [(id_, encoded(opened(picture).point(lambda level: level // 6))) for id_, picture in good(photos)[:30]]
    assert look_at([*dark, *good(photos)[30:]]) == ([], ["dark pictures: 30 of 80 are, so none of them is listed"])


def test_a_set_of_small_pictures_has_no_odd_sizes():
    rng = np.random.default_rng(0)
    drawn = [Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)) for _ in range(20)]
    assert faults([(str(i), encoded(image, "PNG")) for i, image in enumerate(drawn)]) == {}


def test_the_looks_are_in_the_order_of_the_splits(photos):
    splits = write_splits(
        train=[("a", "acura", photos[0][1])], test=[("b", "acura", photos[1][1]), ("c", "bmw", photos[2][1])]
    )
    looks = pictures.looks(splits, lambda event: None)
    assert [(look.sample.split, look.sample.id, look.width) for look in looks] == [
        ("test", "b", 128),
        ("test", "c", 128),
        ("train", "a", 128),
    ]


def test_a_missing_split_is_reported():
    with pytest.raises(InputError, match="dvc repro prepare"):
        pictures.looks({"test": write_splits()["test"].with_name("gone.parquet")}, lambda event: None)
