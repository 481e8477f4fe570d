"""Compares rules that choose a threshold on confidence from a validation split: `python -m benchmarks.thresholds`.

The 600 answers to test of final_eval and of structured_eval are each taken for a whole
population, in which the accuracy above every threshold is known. Validation splits are drawn from it, with replacement,
1,000 of each size; on each of them every rule chooses the threshold for a target accuracy:

- mean: the smallest threshold from which on the accuracy on validation reaches the target.
- succession: the same with the expected accuracy of the next answer, the rule of vlm/measuring/thresholds.py.
- wilson: the same with the lower end of the 95 % Wilson interval.
- guaranteed: the binary search of Y. Geifman and R. El-Yaniv (Selective classification for deep neural networks,
  NeurIPS 2017, algorithm 1), which misses the target with a probability of at most 5 %.

Prints, and writes to benchmarks/thresholds.json, how often there is such a threshold, and of those: the mean coverage,
the mean accuracy, and how often the accuracy in the population misses the target. A minute.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import beta, norm

from vlm.measuring import Predictions
from vlm.measuring.thresholds import smallest

SIZES, DRAWS, DELTA = (160, 400, 1600), 1000, 0.05


def main() -> None:
    rows = []
    for name in ("final_eval", "structured_eval"):
        population = Predictions.load(name).frame[["confidence", "right"]]
        for target in (0.95, 0.99):
            for size in SIZES:
                rng = np.random.default_rng(0)  # the same splits for every rule
                found: dict[str, list[tuple[float, float]]] = {rule: [] for rule in RULES}
                for _ in range(DRAWS):
                    validation = population.iloc[rng.integers(0, len(population), size)]
                    for rule, choose in RULES.items():
                        threshold = choose(validation, target)
                        if threshold is not None:
                            kept = population["right"][population["confidence"] >= threshold]
                            found[rule].append((len(kept) / len(population), kept.mean()))
                for rule, chosen in found.items():
                    rows.append(summary(name, target, size, rule, chosen))
                    print("  ".join(f"{value!s:>15}" for value in rows[-1].values()))
    Path("benchmarks/thresholds.json").write_text(json.dumps(rows, indent=2) + "\n")


def summary(name: str, target: float, size: int, rule: str, chosen: list[tuple[float, float]]) -> dict:
    coverage, accuracy = np.array(chosen or [(math.nan, math.nan)]).T
    return {
        "answers": name,
        "target": target,
        "validation": size,
        "rule": rule,
        "found": round(len(chosen) / DRAWS, 3),
        "coverage": round(float(coverage.mean()), 3) if chosen else None,
        "accuracy": round(float(accuracy.mean()), 4) if chosen else None,
        "missed": round(float((accuracy < target).mean()), 3) if chosen else None,
    }  # fmt: skip


def by_estimate(estimate: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable:
    """The rule that keeps as many of the most confident answers as it can while `estimate(right, n)` is high enough."""

    def choose(validation: pd.DataFrame, target: float) -> float | None:
        confidence, right, n = prefixes(validation)
        good = np.flatnonzero((estimate(right, n) >= target) & (np.append(confidence[1:], -1) < confidence))
        return confidence[good[-1]] if len(good) else None

    return choose


def wilson_low(right: np.ndarray, n: np.ndarray) -> np.ndarray:
    z, p = norm.ppf(0.975), right / n
    return (p + z**2 / (2 * n) - z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))) / (1 + z**2 / n)


def guaranteed(validation: pd.DataFrame, target: float) -> float | None:
    confidence, right, n = prefixes(validation)
    rounds = math.ceil(math.log2(len(n)))
    low, high, best = 0, len(n) - 1, None
    for _ in range(rounds):
        middle = (low + high + 1) // 2
        kept = np.searchsorted(-confidence, -confidence[middle], side="right") - 1  # with all that are as confident
        wrong = n[kept] - right[kept]
        # The binomial tail bound of their lemma 3.1 is the upper end of the interval of Clopper and Pearson.
        risk = beta.ppf(1 - DELTA / rounds, wrong + 1, right[kept]) if right[kept] else 1.0
        if risk <= 1 - target:
            low, best = middle, confidence[middle]
        else:
            high = max(middle - 1, 0)
    return best


def prefixes(validation: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Confidence in falling order, the number of right answers among the first 1, 2, ..., and these numbers."""
    ordered = validation.sort_values("confidence", ascending=False, kind="stable")
    return ordered["confidence"].to_numpy(), ordered["right"].to_numpy().cumsum(), np.arange(1, len(ordered) + 1)


RULES = {
    "mean": by_estimate(lambda right, n: right / n),
    "succession": lambda validation, target: smallest(validation, target),
    "wilson": by_estimate(wilson_low),
    "guaranteed": guaranteed,
}

if __name__ == "__main__":
    main()
