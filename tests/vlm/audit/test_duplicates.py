import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.vlm.audit.samples import encoded, opened, write_splits
from vlm.audit import duplicates, pictures


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def found(**splits):
    """{copy: other} for all near duplicates in the splits, each as SPLIT/ID, and the suspects."""
    looks = pictures.looks(write_splits(**splits), lambda event: None)
    suspects = duplicates.near_duplicates(looks, lambda event: None)
    assert all(suspect.kind == "near_duplicate" and 0 <= suspect.score <= 1 for suspect in suspects)
    return {f"{s.sample.split}/{s.sample.id}": s.other for s in suspects}, suspects


def rows(photos):
    return [(str(i), label, picture) for i, (label, picture) in enumerate(photos)]


def cropped(image, left, top, right, bottom):
    width, height = image.size
    return image.crop(
        (round(left * width), round(top * height), round(width * (1 - right)), round(height * (1 - bottom)))
    )


def test_photos_of_the_same_badges_are_no_duplicates(photos):
    assert found(test=rows(photos))[0] == {}


@pytest.mark.parametrize("number", [3, 20, 41, 66])
def test_a_copy_that_was_encoded_again_resized_or_cropped_is_found(photos, number):
    image = opened(photos[number][1])
    copies = {
        "encoded": encoded(image, quality=60),
        "resized": encoded(image.resize((90, 90))),
        "enlarged": encoded(image.resize((300, 300))),
        "cropped": encoded(cropped(image, 0.04, 0, 0.03, 0.05)),
        "both": encoded(cropped(image, 0, 0.04, 0.02, 0.01).resize((100, 100))),
    }
    label = photos[number][0]
    pairs, _ = found(test=rows(photos), train=[(name, label, copy) for name, copy in copies.items()])
    assert pairs == {f"train/{name}": f"test/{number}" for name in copies}


def test_the_suspect_is_the_copy_in_train_and_the_reason_says_how_the_other_differs(photos):
    label, picture = photos[0]
    _, (across,) = found(train=[("a", label, picture)], test=[("b", label, picture)])
    assert (across.sample.split, across.other) == ("train", "test/b")
    assert across.score == pytest.approx(1)
    assert across.reason == "Nearly the same picture as test/b, which is in another split."
    _, (conflict,) = found(test=[("a", label, picture), ("b", "other", picture)])
    assert conflict.reason == f"Nearly the same picture as test/a, which is labelled {label!r}."
    _, (within,) = found(test=[("a", label, picture), ("b", label, picture)])
    assert within.reason == "Nearly the same picture as test/a."


def test_many_copies_of_one_picture_are_all_found(photos):
    label, picture = photos[5]
    copies = [(f"copy-{i}", label, encoded(opened(picture), quality=80 + i)) for i in range(8)]
    pairs, _ = found(test=rows(photos), train=copies)
    assert pairs.keys() == {f"train/copy-{i}" for i in range(8)}


def test_blank_pictures_are_no_duplicates_of_each_other(photos, wall):
    assert found(test=[*rows(photos), ("w", "bmw", wall), ("x", "bmw", wall)])[0] == {}


def test_different_fine_patterns_are_no_duplicates(photos):
    """Although their thumbnails have the same grey everywhere."""
    down, across = np.indices((128, 128)) // 4
    patterns = {"stripes": across, "bars": down, "squares": down + across}
    drawn = {name: Image.fromarray((pattern % 2 * 255).astype(np.uint8)) for name, pattern in patterns.items()}
    fine = [(name, "bmw", encoded(image, "PNG")) for name, image in drawn.items()]
    assert found(test=[*rows(photos), *fine])[0] == {}


@pytest.mark.parametrize("side", [8, 64])
def test_drawings_that_all_look_alike_are_no_duplicates_but_a_copy_among_them_is(side):
    digits = load_digits()
    drawn = [Image.fromarray((pixels * 15.9).astype(np.uint8)).convert("RGB") for pixels in digits.images[:150]]
    drawn = [image.resize((side, side)) for image in drawn]
    split = [(str(i), str(digits.target[i]), encoded(image, "PNG")) for i, image in enumerate(drawn)]
    copy = ("copy", str(digits.target[7]), encoded(drawn[7], quality=98))
    pairs, _ = found(test=split, train=[copy])
    assert pairs["train/copy"] == "test/7"
    assert len(pairs) <= 4  # some of the digits are the same in almost every pixel


def test_empty_splits_have_no_duplicates():
    assert found()[0] == {}


def test_a_shifted_and_stretched_picture_is_fitted(photos):
    image = opened(photos[10][1])
    whole, part = (
        np.asarray(picture.resize((48, 48), Image.Resampling.BOX), np.float32)[None]
        for picture in (image, cropped(image, 0.05, 0.02, 0.0, 0.04))
    )
    without_fitting = ((whole - part) ** 2).sum() / ((part - part.mean((1, 2), keepdims=True)) ** 2).sum()
    assert without_fitting > 0.2
    assert duplicates.difference(whole, part)[0] < 0.05
    assert duplicates.difference(whole, whole)[0] == pytest.approx(0, abs=1e-6)
