from collections import Counter

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import BatchSampler

from vlm.training.sampling import AugmentedRows, EpochSampler, transform

LABELS = ["a"] * 900 + ["b"] * 90 + ["c"] * 10


def drawn(balance, epoch=0, seed=1, labels=LABELS, batch_size=16, lengths=(7,) * 1000):
    sampler = EpochSampler(labels, balance, seed, batch_size, lengths)
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


def test_equal_lengths_leave_the_order_as_drawn():
    expected = np.random.default_rng([1, 3]).permutation(1000) + 3000
    assert drawn("none", 3) == expected.tolist()


prompt_lengths = st.lists(st.integers(1, 9), min_size=1, max_size=200)


@given(prompt_lengths, st.integers(1, 5), st.sampled_from(["none", "sqrt"]), st.integers(0, 2))
def test_samples_of_similar_length_share_a_batch(lengths, size, balance, epoch):
    """Windows of 16 batches keep their samples, each batch is a contiguous part of its sorted window."""
    labels = ["a", "b", "b", "c"] * 50
    knobs = {"epoch": epoch, "labels": labels[: len(lengths)], "batch_size": size}
    plain = drawn(balance, lengths=[1] * len(lengths), **knobs)
    items = drawn(balance, lengths=lengths, **knobs)
    assert items == drawn(balance, lengths=lengths, **knobs)  # it has no state
    assert sorted(items) == sorted(plain)
    of = {item: lengths[item % len(lengths)] for item in items}
    batches = [items[start : start + size] for start in range(0, len(items), size)]
    if epoch == 0:
        complete = [batch for batch in batches if len(batch) == size] or batches
        assert of[batches[0][0]] == max(of.values()) == max(of[batch[0]] for batch in complete)
        return
    if len(set(lengths)) == 1:
        assert items == plain
        return
    last = max(0, (len(items) // size - 1) // 16) * 16  # the first batch of the last window
    for first in range(0, last + 1, 16):
        chosen = slice(first * size, (first + 16) * size if first < last else None)
        assert sorted(items[chosen]) == sorted(plain[chosen])
        window = batches[first : first + 16 if first < last else None]
        by_length = sorted(window, key=lambda batch: (of[batch[0]], of[batch[-1]]), reverse=True)
        in_order = [of[item] for batch in by_length for item in batch]
        assert in_order == sorted(in_order, reverse=True)


def test_batches_come_in_random_order():
    lengths = np.random.default_rng(0).integers(200, 2000, 1000).tolist()
    for epoch in (0, 1):
        items = drawn("none", epoch, lengths=lengths)
        longest = [max(lengths[item % 1000] for item in items[start : start + 16]) for start in range(0, 1000, 16)]
        assert np.corrcoef(longest[1:-1], longest[2:])[0, 1] < 0.3
        assert (longest[0] == max(lengths)) == (epoch == 0)
    padded = 16 * sum(longest[:-1]) + 8 * longest[-1]
    assert padded < 1.1 * sum(lengths)
    assert drawn("none", 1, lengths=lengths) != drawn("none", 1, lengths=lengths, seed=2)


def test_processes_work_on_similar_lengths_at_the_same_time():
    """Two processes, each with micro-batches of 4 of the batches of 16, as accelerate distributes them."""
    lengths = np.random.default_rng(0).integers(200, 2000, 1000).tolist()
    sampler = EpochSampler(LABELS, "none", 1, 16, lengths)
    shards = [list(BatchSamplerShard(BatchSampler(sampler, 4, False), 2, i)) for i in range(2)]
    assert sorted(item for shard in shards for batch in shard for item in batch) == list(range(1000))
    longest = np.array([[max(lengths[item] for item in batch) for batch in shard] for shard in shards])
    assert longest.shape == (2, 125)
    assert np.abs(longest[0] - longest[1]).mean() < 50


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
