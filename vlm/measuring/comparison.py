"""Compares the answers of two models to the same samples."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

_RESAMPLES = 10_000


def compare(before: "pd.DataFrame", after: "pd.DataFrame") -> dict[str, float | int]:
    """How much accuracy `after` gains over `before`: the difference as a fraction, its 95 % interval and a p-value.

    `gained` is the number of samples that only `after` gets right, `lost` the number that only `before` gets right.
    The interval is from a paired percentile bootstrap (B. Efron and R. Tibshirani, An Introduction to the Bootstrap,
    1993, chapter 13). The test is McNemar's, exact and two-sided (Q. McNemar, Psychometrika 12 (1947), 153-157).
    Raises ValueError unless both tables have the same ids in the same order.
    """
    import numpy as np
    from scipy.special import bdtr

    if list(before["id"]) != list(after["id"]):
        raise ValueError("the predictions are of different samples: expected the same ids in the same order")
    was_right = (before["label"] == before["predicted"]).to_numpy(bool)
    is_right = (after["label"] == after["predicted"]).to_numpy(bool)
    n, gained, lost = len(is_right), int((is_right & ~was_right).sum()), int((was_right & ~is_right).sum())
    # A resample only matters through how many of its n samples are gained, lost, or neither: a multinomial draw.
    kinds = np.array([gained, lost, n - gained - lost]) / n
    drawn = np.random.default_rng(0).multinomial(n, kinds, size=_RESAMPLES)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / n, [0.025, 0.975])
    return {
        "gain": (gained - lost) / n,
        "gain_low": float(low),
        "gain_high": float(high),
        "mcnemar_p": min(1.0, 2 * float(bdtr(min(gained, lost), gained + lost, 0.5))),
        "gained": gained,
        "lost": lost,
    }
