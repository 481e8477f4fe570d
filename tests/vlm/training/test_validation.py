from collections import Counter

from vlm.data import dataset
from vlm.training.validation import validation_rows


def test_validation_rows_are_spread_over_the_labels(job, make_split):
    split = make_split("train", 60)
    _, labels = dataset.ids_and_labels(split)
    rows = validation_rows(split, 20, seed=1)
    assert rows == sorted(set(rows)) == validation_rows(split, 20, seed=1)
    assert len(rows) == 20
    counts = Counter(labels[row] for row in rows)
    assert max(counts.values()) <= 1 or len(counts) == len(set(labels))
    assert validation_rows(split, 99, seed=1) == list(range(60))
    assert validation_rows(split, 20, seed=2) != rows
