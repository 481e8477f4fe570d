"""Successive halving: bad candidates are found with few samples, and only good ones are asked about many.

Every round asks all candidates that are left about the same samples, twice as many as the round before, and then drops
the worse half (Z. Karnin et al., ICML 2013; K. Jamieson and A. Talwalkar, AISTATS 2016). It also drops those that a
paired t-test finds worse than the round's best one, as racing does (M. Birattari et al., "A racing algorithm for
configuring metaheuristics", GECCO 2002). The first candidate, the task's present prompt, stays to the end.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

PRESENT = 0  # the candidate that stays
# Of the paired tests. They only save time, so nothing depends on its exact value; a small one, because there are many
# tests, and with few samples differences of losses are not normally distributed.
_LEVEL = 0.01


@dataclass(frozen=True)
class Verdict:
    """The best candidate of a round, and why each of those that it dropped was dropped."""

    best: int
    dropped: dict[int, str]


def sizes(candidates: int, samples: int, passes: float) -> list[int]:
    """The number of samples that each round has asked about by its end: samples / 2^k, ..., samples / 2, samples.

    k is the smallest number, at least 1, with which all rounds together ask for at most `passes` answers a sample.
    Raises ValueError if there is none.
    """
    for halvings in range(1, max(2, samples.bit_length() + 1)):
        counts = [math.ceil(samples / 2**k) for k in range(halvings, -1, -1)]
        if cost(candidates, counts) <= passes * samples:
            return counts
    least = math.ceil(10 * cost(candidates, counts) / samples) / 10
    raise ValueError(f"{candidates} candidates need at least {least:g} passes over {samples} samples")


def cost(candidates: int, counts: list[int]) -> int:
    """The number of answers that rounds with these sizes ask for, if no paired test drops a candidate."""
    others, before, total = candidates - 1, 0, 0
    for count in counts:
        total += (others + 1) * (count - before)
        others, before = _half(others), count
    return total


def judge(losses: "Mapping[int, np.ndarray]") -> Verdict:
    """The verdict on the candidates of a round; `losses` has each one's losses on the same samples, by candidate.

    Of equally good ones, the first is better.
    """
    ranked = sorted(losses, key=lambda candidate: (float(losses[candidate].mean()), candidate))
    best = ranked[0]
    others = [candidate for candidate in ranked if candidate != PRESENT]
    dropped = {candidate: "in the worse half" for candidate in others[_half(len(others)) :]}
    for candidate in others:
        p = _worse(losses[candidate], losses[best])
        if p < _LEVEL:
            dropped[candidate] = f"worse than the best (p = {p:.1g})"
    return Verdict(best, dropped)


def _half(others: int) -> int:
    """How many of the candidates other than the present prompt the next round keeps at most."""
    return math.ceil(others / 2)


def _worse(losses: "np.ndarray", best: "np.ndarray") -> float:
    """The p-value of a one-sided paired t-test of equal losses, against those of a candidate that is no worse."""
    from scipy.stats import ttest_rel

    if len(losses) < 2 or (losses == best).all():
        return 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # differences that are all alike; p is then 0, which is right
        return float(ttest_rel(losses, best, alternative="greater").pvalue)
