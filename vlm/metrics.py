"""Predictions -> numbers with intervals, and the flat JSON files that DVC compares.

`predictions` is a table with a row a sample: id, label (the truth), text (what the model wrote), predicted (a label, or
null when the text is none), probabilities (a list over the task's labels, or null). Every sample is in every
denominator: a text that is no label is a wrong answer.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
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


def structured(predictions: "pd.DataFrame", calibration: Path, labels: Sequence[str]) -> dict[str, float | int]:
    """All that there is to say of answers that are labels; `calibration`: validation's predictions, if any."""
    import pandas as pd

    values = classification(predictions, labels) | posterior(predictions, labels)
    return values | (calibrated(predictions, pd.read_parquet(calibration), labels) if calibration.exists() else {})


def posterior(predictions: "pd.DataFrame", labels: Sequence[str]) -> dict[str, float]:
    """What the labels' probabilities are worth; {} for predictions without any.

    top_3_accuracy; log_loss in nats; brier_score, the squared distance between the probabilities and the truth, 0 to 2
    (G. W. Brier, Monthly Weather Review 78 (1950), 1-3); calibration_error, the expected one, over 15 bins of equal
    mass (as in M. Minderer et al., NeurIPS 2021); accuracy_at_C, the accuracy on the C % of samples of which the model
    is surest.
    """
    import numpy as np
    from sklearn.metrics import brier_score_loss, log_loss, top_k_accuracy_score

    if predictions["probabilities"].isna().any():
        return {}
    probabilities = np.stack(predictions["probabilities"].to_list())
    truth = [labels.index(label) for label in predictions["label"]]
    every = np.arange(len(labels))
    if len(labels) == 1:
        values = {"top_3_accuracy": 1.0, "log_loss": 0.0, "brier_score": 0.0}
    else:
        sure = {"top_3_accuracy": 1.0} if len(labels) <= 3 else {}
        values = sure or {"top_3_accuracy": float(top_k_accuracy_score(truth, probabilities, k=3, labels=every))}
        values["log_loss"] = float(log_loss(truth, probabilities, labels=every))
        values["brier_score"] = float(brier_score_loss(truth, probabilities, labels=every, scale_by_half=False))
    confidence, right = confidence_and_hits(predictions)
    bins = reliability(confidence, right)
    values["calibration_error"] = float(sum(n * abs(p - accuracy) for n, p, accuracy in bins) / len(right))
    surest_first = np.argsort(-confidence, kind="stable")
    for coverage in (50, 80, 90, 95):
        kept = surest_first[: math.ceil(len(right) * coverage / 100)]
        values[f"accuracy_at_{coverage}"] = float(right[kept].mean())
    return values


def calibrated(predictions: "pd.DataFrame", validation: "pd.DataFrame", labels: Sequence[str]) -> dict[str, float]:
    """The probability metrics after temperature scaling, fitted on `validation` alone, as calibrated_<name>.

    The labels' probabilities become proportional to p ** (1 / temperature), where temperature minimises the log loss of
    the validation split (C. Guo et al., ICML 2017). Which label is the most probable does not change.
    """
    import numpy as np
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    def scaled(table: "pd.DataFrame", temperature: float) -> np.ndarray:
        tiny = np.finfo(np.float64).tiny  # of a probability that is too small for a float, too
        logarithms = np.log(np.maximum(np.stack(table["probabilities"].to_list()), tiny))
        return log_softmax(logarithms / temperature, axis=1)

    truth = np.array([labels.index(label) for label in validation["label"]])

    def validation_loss(log_temperature: float) -> float:
        return -float(scaled(validation, math.exp(log_temperature))[np.arange(len(truth)), truth].mean())

    temperature = math.exp(minimize_scalar(validation_loss, bounds=(-5, 5), method="bounded").x)
    after = posterior(predictions.assign(probabilities=list(np.exp(scaled(predictions, temperature)))), labels)
    kept = ("log_loss", "brier_score", "calibration_error")
    return {"temperature": temperature} | {f"calibrated_{name}": after[name] for name in kept}


def confidence_and_hits(predictions: "pd.DataFrame") -> "tuple[np.ndarray, np.ndarray]":
    """(samples,) the probability of the predicted label, and whether it is right."""
    import numpy as np

    confidence = np.array([max(probabilities) for probabilities in predictions["probabilities"]])
    return confidence, (predictions["label"] == predictions["predicted"]).to_numpy(bool)


def reliability(confidence: "np.ndarray", right: "np.ndarray", bins: int = 15) -> list[tuple[int, float, float]]:
    """(samples, mean confidence, accuracy) of each of `bins` bins with as equal a number of samples as can be."""
    import numpy as np

    order = np.argsort(confidence, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return [(len(part), float(confidence[part].mean()), float(right[part].mean())) for part in parts]


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
