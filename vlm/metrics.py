"""Predictions -> numbers with intervals, and the flat JSON files that DVC compares.

`predictions` is a table with a row a sample: id, label (the truth), text (what the model wrote), predicted (a label, or
null when the text is none). Every sample is in every denominator: a text that is no label is a wrong answer.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from vlm.task import Task

_RESAMPLES = 10_000


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of a proportion, which keeps its coverage near 0 and 1 and for small `n`.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927), 209-212.
    Raises ValueError unless 0 <= successes <= n and n > 0.
    """
    from scipy.stats import norm

    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"{successes} successes in {n} samples: expected 0 <= successes <= n and n > 0")
    z = float(norm.ppf(0.5 + confidence / 2))
    p = successes / n
    centre = p + z**2 / (2 * n)
    half_width = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    # The ends are exact at 0 and n; floating point would miss them by 1e-17.
    low = 0.0 if successes == 0 else (centre - half_width) / scale
    high = 1.0 if successes == n else (centre + half_width) / scale
    return low, high


def classification(predictions: "pd.DataFrame", labels: Sequence[str]) -> dict[str, float | int]:
    """Accuracy with its Wilson 95 % interval, the share of valid answers, balanced accuracy and macro F1.

    Balanced accuracy and macro F1 are means over the labels that occur as the truth. Raises ValueError if there are no
    predictions, or a label that is not one of `labels`.
    """
    from sklearn.metrics import f1_score, recall_score

    truth, predicted, present = truth_and_answers(predictions, labels)
    n, right = len(truth), sum(map(str.__eq__, truth, predicted))
    low, high = wilson(right, n)
    averaged = {"labels": present, "average": "macro", "zero_division": 0.0}
    return {
        "samples": n,
        "accuracy": right / n,
        "accuracy_low": low,
        "accuracy_high": high,
        "valid_rate": sum(map(bool, predicted)) / n,
        "balanced_accuracy": float(recall_score(truth, predicted, **averaged)),
        "macro_f1": float(f1_score(truth, predicted, **averaged)),
    }


def lenient(predictions: "pd.DataFrame", task: "Task") -> dict[str, float]:
    """Accuracy when a label also counts that stands, alone, inside a longer text."""
    right = 0
    for label, text, predicted in predictions[["label", "text", "predicted"]].itertuples(index=False):
        answer = predicted if isinstance(predicted, str) else task.parse_leniently(text)
        right += answer == label
    return {"lenient_accuracy": right / len(predictions)}


def compare(before: "pd.DataFrame", after: "pd.DataFrame") -> dict[str, float | int]:
    """What `after` gains in accuracy over `before` on the same samples, with a 95 % interval and a p-value.

    The interval is a paired percentile bootstrap (B. Efron and R. Tibshirani, An Introduction to the Bootstrap, 1993,
    chapter 13), the test McNemar's, exact and two-sided (Q. McNemar, Psychometrika 12 (1947), 153-157).
    Raises ValueError unless both have the same ids in the same order.
    """
    import numpy as np
    from scipy.stats import binomtest

    if list(before["id"]) != list(after["id"]):
        raise ValueError("the predictions are not of the same samples: expected the same ids in the same order")
    was_right = (before["label"] == before["predicted"]).to_numpy(bool)
    is_right = (after["label"] == after["predicted"]).to_numpy(bool)
    n, gained, lost = len(is_right), int((is_right & ~was_right).sum()), int((was_right & ~is_right).sum())
    # Drawing n samples with replacement draws from three kinds of samples: gained, lost, and the same in both.
    kinds = np.array([gained, lost, n - gained - lost]) / n
    drawn = np.random.default_rng(0).multinomial(n, kinds, size=_RESAMPLES)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / n, [0.025, 0.975])
    return {
        "accuracy_gain": (gained - lost) / n,
        "accuracy_gain_low": float(low),
        "accuracy_gain_high": float(high),
        "mcnemar_p": float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0,
        "gained": gained,
        "lost": lost,
    }


def write(path: str | Path, values: Mapping[str, float | int | str]) -> None:
    """Writes flat JSON, all of it or none, floats with six significant digits so that files are readable and stable.

    Raises ValueError for a nested value, NaN or infinity.
    """
    path, rounded = Path(path), {}
    for name, value in values.items():
        if not isinstance(value, float | int | str) or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f"{path}: {name}: {value!r} is not a finite number or a text")
        rounded[name] = float(f"{value:.6g}") if isinstance(value, float) else value
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(rounded, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def truth_and_answers(predictions: "pd.DataFrame", labels: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """The truth and the answers ("" where the text is no label), a sample each, and the labels that occur as the truth.

    "" makes an invalid answer a miss of its own class and a false alarm of no other. Raises ValueError if there are no
    predictions, or a label that is not one of `labels`.
    """
    if predictions.empty:
        raise ValueError("there are no predictions to measure")
    truth, predicted = list(predictions["label"]), [p if isinstance(p, str) else "" for p in predictions["predicted"]]
    unknown = sorted({*truth, *predicted} - {*labels, ""})
    if unknown:
        raise ValueError(f"the predictions have a label {unknown[0]!r}, which is not one of the task's")
    occurring = set(truth)
    return truth, predicted, [label for label in labels if label in occurring]
