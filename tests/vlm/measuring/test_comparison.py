import numpy as np
import pytest

from tests.vlm.measuring.test_metrics import table
from vlm.measuring.comparison import compare


def test_compare_by_hand():
    before = table(("a", "a"), ("a", None), ("b", "a"), ("b", "b"), ("b", None))
    after = table(("a", "a"), ("a", "a"), ("b", "b"), ("b", "a"), ("b", "b"))
    values = compare(before, after)
    assert (values["gained"], values["lost"]) == (3, 1)
    assert values["gain"] == pytest.approx(0.4)
    assert values["mcnemar_p"] == pytest.approx(2 * (1 + 4) / 2**4)  # 2 P(at most 1 of 4 by fair coins)
    assert values == compare(before, after)
    assert {type(value) for value in values.values()} == {int, float}


def test_the_bootstrap_is_that_of_resampled_samples():
    rng = np.random.default_rng(5)
    n = 400
    before = table(*[("a", "a" if right else "b") for right in rng.random(n) < 0.6])
    after = table(*[("a", "a" if right else "b") for right in rng.random(n) < 0.7])
    values = compare(before, after)
    difference = (after["predicted"] == "a").astype(int).to_numpy() - (before["predicted"] == "a").astype(
        int
    ).to_numpy()
    resampled = difference[rng.integers(0, n, (10_000, n))].mean(axis=1)
    assert values["gain"] == pytest.approx(difference.mean())
    assert values["gain_low"] == pytest.approx(np.quantile(resampled, 0.025), abs=0.005)
    assert values["gain_high"] == pytest.approx(np.quantile(resampled, 0.975), abs=0.005)


def test_equal_predictions_gain_nothing():
    same = table(("a", "a"), ("b", None))
    gain = {"gain": 0, "gain_low": 0, "gain_high": 0, "mcnemar_p": 1, "gained": 0, "lost": 0}
    assert compare(same, same) == gain


def test_compare_refuses_other_samples():
    rows = table(("a", "a"), ("b", "b"))
    for other in (rows.iloc[::-1], rows.iloc[:1]):
        with pytest.raises(ValueError, match=r"\A[^\n]*same ids in the same order\Z"):
            compare(rows, other)
