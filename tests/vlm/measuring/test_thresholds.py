import numpy as np
import pytest

from tests.vlm.measuring.test_metrics import table
from vlm.evaluation.intervals import wilson
from vlm.measuring import Predictions, thresholds


def answers(confidence, right):
    """Predictions of a or b with these confidences."""
    frame = table(*(("a", "a") if hit else ("b", "a") for hit in right))
    return Predictions("x", frame.assign(probabilities=[[p, 1 - p] for p in confidence]), "ab")


def smallest(confidence, right, target):
    return thresholds.smallest(answers(confidence, right).frame, target)


def test_the_threshold_is_the_smallest_that_reaches_the_target():
    confidence = np.linspace(0.999, 0.6, 200)
    right = np.arange(200) % 25 != 24  # one in 25 is wrong: the 25th, the 50th, ...
    right[120:] = False
    found = smallest(confidence, right, 0.95)
    kept = confidence >= found
    assert (right[kept].sum() + 1) / (kept.sum() + 2) >= 0.95
    for lower in confidence[~kept]:
        also = confidence >= lower
        assert (right[also].sum() + 1) / (also.sum() + 2) < 0.95


def test_a_few_right_answers_are_not_enough():
    """18 right answers of 18 are expected to be followed by another one with probability 19/20."""
    assert smallest(np.linspace(0.9, 0.8, 17), [True] * 17, 0.95) is None
    assert smallest(np.linspace(0.9, 0.8, 18), [True] * 18, 0.95) == 0
    assert smallest(np.linspace(0.9, 0.8, 97), [True] * 97, 0.99) is None
    assert smallest(np.linspace(0.9, 0.8, 98), [True] * 98, 0.99) == 0


@pytest.mark.parametrize(
    ("lowest_kept", "highest_left", "threshold"),
    [(0.7153, 0.7021, 0.71), (0.9, 0.55, 0.9), (0.999987, 0.999981, 0.999987), (0.999987, 0.99991, 0.99998), (1.0, 0.999999, 1.0)],
)  # fmt: skip
def test_a_threshold_has_no_more_digits_than_it_needs(lowest_kept, highest_left, threshold):
    confidence = [1.0] * 40 + [lowest_kept] + [highest_left] * 40
    assert smallest(confidence, [True] * 41 + [False] * 40, 0.95) == threshold


def test_answers_with_equal_confidence_stay_together():
    assert smallest([0.9] * 30 + [0.8] * 10, [True] * 30 + [True] * 5 + [False] * 5, 0.95) == 0.9


def test_coverage_and_accuracy_are_those_of_test():
    validation = answers([0.9] * 50 + [0.6] * 50, [True] * 50 + [False] * 50)
    test = answers([0.95] * 40 + [0.7] * 60, [True] * 36 + [False] * 64)
    lower, higher = thresholds.chosen(validation, test)
    low, high = wilson(36, 40)
    coverage_low, coverage_high = wilson(40, 100)
    assert lower == {
        "target": 0.95,
        "threshold": 0.9,
        "coverage": 0.4,
        "coverage_low": coverage_low,
        "coverage_high": coverage_high,
        "accuracy": 0.9,
        "low": low,
        "high": high,
    }
    assert higher == dict.fromkeys(lower) | {"target": 0.99}


def test_no_answer_to_test_may_be_confident_enough():
    found = thresholds.chosen(answers([0.9] * 50 + [0.6] * 50, [True] * 50 + [False] * 50), answers([0.7], [True]))[0]
    assert (found["threshold"], found["coverage"], found["accuracy"], found["low"]) == (0.9, 0, None, None)
    assert 0 == found["coverage_low"] < found["coverage_high"] < 1


def test_the_order_of_the_samples_does_not_matter():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 300)
    right = rng.random(300) < confidence
    order = rng.permutation(300)
    assert smallest(confidence, right, 0.95) == smallest(confidence[order], right[order], 0.95) is not None
