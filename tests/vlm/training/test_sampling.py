from collections import Counter

import numpy as np
import pytest
from PIL import Image

from vlm.training.sampling import AugmentedRows, EpochSampler, transform

LABELS = ["a"] * 900 + ["b"] * 90 + ["c"] * 10


def drawn(balance, epoch=0, seed=1):
    sampler = EpochSampler(LABELS, balance, seed)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_without_balance_every_epoch_has_each_row_once_in_a_new_order():
    first, second = drawn("none", 0), drawn("none", 1)
    assert sorted(first) == list(range(1000))
    assert sorted(second) == list(range(1000, 2000))
    assert [item - 1000 for item in second] != first
    assert drawn("none", 0) == first
    assert drawn("none", 0, seed=2) != first


@pytest.mark.parametrize(
    ("balance", "fractions"), [("uniform", (1 / 3, 1 / 3, 1 / 3)), ("sqrt", (0.702, 0.222, 0.074))]
)
def test_balance_draws_rare_labels_more_often(balance, fractions):
    counts = Counter()
    for epoch in range(20):
        items = drawn(balance, epoch)
        assert len(items) == 1000
        counts.update(LABELS[item % 1000] for item in items)
    for label, fraction in zip("abc", fractions, strict=True):
        assert counts[label] / 20_000 == pytest.approx(fraction, abs=0.02)


def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8))


def pixels(rows, item):
    return np.asarray(rows[item]["image"])


@pytest.mark.parametrize("augment", ["light", "strong"])
def test_augmentation_is_fixed_for_each_item_and_differs_between_epochs(augment):
    rows = [{"image": picture(), "label": "a"}] * 4
    augmented = AugmentedRows(rows, augment, flip=True, seed=3)
    again = AugmentedRows(rows, augment, flip=True, seed=3)
    first = [pixels(augmented, item) for item in (0, 1, 4)]  # 0 and 4: one row in two epochs
    for item, expected in zip((4, 0, 1), (first[2], first[0], first[1]), strict=True):
        assert np.array_equal(pixels(again, item), expected)
    assert first[0].shape != first[2].shape or not np.array_equal(first[0], first[2])
    assert augmented[5]["label"] == "a"


def test_without_augmentation_a_picture_is_unchanged():
    rows = [{"image": picture(), "label": "a"}]
    assert AugmentedRows(rows, "none", flip=True, seed=3)[7]["image"] is rows[0]["image"]


def test_pictures_are_mirrored_only_if_flip_is_set():
    left = Image.new("RGB", (100, 50), "black")
    left.paste("white", (0, 0, 50, 50))
    rows = [{"image": left}]

    def mirrored(flip):
        augmented = AugmentedRows(rows, "light", flip, seed=0)
        return sum(pixels(augmented, item)[:, :20].mean() < 100 for item in range(60))

    assert mirrored(False) == 0
    assert 15 < mirrored(True) < 45


def test_crops_keep_most_of_a_picture():
    rows = AugmentedRows([{"image": picture()}], "strong", flip=False, seed=0)
    areas = [np.prod(pixels(rows, item).shape[:2]) / 4800 for item in range(50)]
    assert min(areas) > 0.55
    assert transform("none", True) is None
