import pytest
from scipy.stats import binomtest

from vlm.evaluation.intervals import wilson


@pytest.mark.parametrize(
    ("successes", "n"), [(0, 1), (1, 1), (0, 100), (81, 100), (82, 100), (999, 1000), (6750, 6750)]
)
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_wilson_agrees_with_scipy(successes, n, confidence):
    interval = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert wilson(successes, n, confidence) == pytest.approx((interval.low, interval.high), abs=1e-12)


def test_wilson_in_known_cases():
    low, high = wilson(81, 100)
    assert (round(low, 2), round(high, 2)) == (0.72, 0.87)
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == 1.0


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_invalid_counts(successes, n):
    with pytest.raises(ValueError, match="expected 0 <= successes <= n"):
        wilson(successes, n)
