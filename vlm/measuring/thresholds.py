"""From confidence to a decision: the probability above which answers are right often enough."""

from typing import TYPE_CHECKING

from vlm.evaluation.intervals import wilson

if TYPE_CHECKING:
    import pandas as pd

    from vlm.measuring.answers import Predictions

TARGETS = (0.95, 0.99)
_UNITS = 10**6  # a threshold has at most six decimals


def chosen(validation: "Predictions", test: "Predictions") -> list[dict[str, float | None]]:
    """For each target accuracy, the threshold chosen on validation, and what it does on test.

    Answers with at least the probability `threshold` are kept. `coverage` is the fraction that is kept, `accuracy` the
    fraction of these that is right; both are of test, and both come with a 95 % Wilson interval. All of it is None if
    no threshold reaches the target; accuracy is None if no answer to test is kept.
    """
    sure = test.frame["confidence"].to_numpy()
    found = []
    for target in TARGETS:
        threshold = smallest(validation.frame, target)
        values: dict[str, float | None] = {"target": target, "threshold": threshold}
        values |= dict.fromkeys(("coverage", "coverage_low", "coverage_high", "accuracy", "low", "high"))
        if threshold is not None:
            kept = test.frame["right"].to_numpy()[sure >= threshold]
            low, high = wilson(len(kept), len(sure))
            values |= {"coverage": len(kept) / len(sure), "coverage_low": low, "coverage_high": high}
            if len(kept):
                low, high = wilson(int(kept.sum()), len(kept))
                values |= {"accuracy": float(kept.mean()), "low": low, "high": high}
        found.append(values)
    return found


def smallest(validation: "pd.DataFrame", target: float) -> float | None:
    """The smallest threshold from which on the expected accuracy on validation is at least `target`; None if none is.

    `validation` is a Predictions.frame. With r of n answers right, the expected accuracy is (r + 1) / (n + 2), the
    probability that the next answer is right (P.-S. Laplace, Mémoire sur la probabilité des causes par les événemens,
    1774: the rule of succession). Unlike r / n, it does not trust three right answers of three.

    This is an estimate, not a guarantee. Y. Geifman and R. El-Yaniv (Selective classification for deep neural networks,
    NeurIPS 2017) guarantee an accuracy, with 95 % probability say, by asking for more: docs/confidence.md compares.
    """
    import numpy as np

    units = np.floor(validation["confidence"].to_numpy() * _UNITS).astype(int)
    order = np.argsort(-units, kind="stable")
    units, right = units[order], validation["right"].to_numpy()[order].cumsum()
    kept = np.arange(1, len(units) + 1)
    # Answers with equal confidence are kept together.
    below = np.append(units[1:], -1)
    reaching = np.flatnonzero(((right + 1) / (kept + 2) >= target) & (below < units))
    return _shortest(units[reaching[-1]], below[reaching[-1]]) if len(reaching) else None


def _shortest(kept: int, below: int) -> float:
    """The decimal fraction with the fewest digits that is at most `kept` and above `below`, both in millionths."""
    step = next(step for step in (_UNITS // 10**digits for digits in range(7)) if kept // step * step > below)
    return int(kept // step * step) / _UNITS
