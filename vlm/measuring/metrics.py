"""Computes metrics from predictions. All samples count: an answer that is not a label is a wrong answer.

`predictions` is always a table as vlm/data/predictions.py describes it.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlm.evaluation import temperature
from vlm.evaluation.intervals import wilson

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from vlm.config.task import Task


def of(predictions: "pd.DataFrame", task: "Task", fitted: float | None = None) -> dict[str, float | int]:
    """All metrics that apply to the predictions: those of probabilities if there are any, else those of raw answers.

    `fitted` is the temperature from the validation split; None leaves out the calibrated metrics. Raises
    ValueError if there are no predictions, or if they contain a label that is not one of the task's.
    """
    values = classification(predictions, task.labels)
    if has_probabilities(predictions):
        del values["valid"]  # always 1
        values |= posterior(predictions, task.labels)
    else:
        values |= lenient(predictions, task)
    if fitted is not None:
        values |= calibrated(predictions, fitted, task.labels)
    return values


def classification(predictions: "pd.DataFrame", labels: Sequence[str]) -> dict[str, float | int]:
    """Number of samples, accuracy and its 95 % Wilson interval (low, high), valid, balanced accuracy and macro F1.

    `valid` is the fraction of answers that are a label. Balanced accuracy and macro F1 are means over the labels that
    occur as the truth. Raises ValueError if there are no predictions, or if they contain a label not in `labels`.
    """
    from sklearn.metrics import f1_score, recall_score

    truth, predicted, present = truth_and_answers(predictions, labels)
    n, right = len(truth), sum(map(str.__eq__, truth, predicted))
    low, high = wilson(right, n)
    averaged = {"labels": present, "average": "macro", "zero_division": 0.0}
    return {
        "samples": n,
        "accuracy": right / n,
        "low": low,
        "high": high,
        "valid": sum(map(bool, predicted)) / n,
        "balanced_accuracy": float(recall_score(truth, predicted, **averaged)),
        "macro_f1": float(f1_score(truth, predicted, **averaged)),
    }


def has_probabilities(predictions: "pd.DataFrame") -> bool:
    """Whether every answer comes with probabilities, as those of structured evaluation do."""
    return bool(predictions["probabilities"].notna().all())


def posterior(predictions: "pd.DataFrame", labels: Sequence[str]) -> dict[str, float]:
    """How good the probabilities over the labels are; {} for predictions without probabilities.

    - top_3_accuracy: how often the truth is among the three most probable labels.
    - log_loss: mean negative log-likelihood of the truth, in nats.
    - brier_score: mean squared distance between the probabilities and the one-hot truth, 0 to 2 (G. W. Brier, Monthly
      Weather Review 78 (1950), 1-3).
    - ece: expected calibration error over 15 bins of equal mass (as in M. Minderer et al., NeurIPS 2021).
    - accuracy_at_C, for C = 50, 80, 90, 95: accuracy on the C % of the samples with the highest confidence.
    """
    import numpy as np
    from sklearn.metrics import brier_score_loss, log_loss, top_k_accuracy_score

    if not has_probabilities(predictions):
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
    values["ece"] = float(sum(n * abs(p - accuracy) for n, p, accuracy in bins) / len(right))
    most_confident_first = np.argsort(-confidence, kind="stable")
    for coverage in (50, 80, 90, 95):
        kept = most_confident_first[: math.ceil(len(right) * coverage / 100)]
        values[f"accuracy_at_{coverage}"] = float(right[kept].mean())
    return values


def calibrated(predictions: "pd.DataFrame", fitted: float, labels: Sequence[str]) -> dict[str, float]:
    """calibrated_log_loss, calibrated_brier_score and calibrated_ece: `posterior` after temperature scaling.

    `fitted` is the temperature (vlm/evaluation/temperature.py).
    """
    scaled = temperature.apply(predictions["probabilities"], fitted)
    after = posterior(predictions.assign(probabilities=list(scaled)), labels)
    return {f"calibrated_{name}": after[name] for name in ("log_loss", "brier_score", "ece")}


def confidence_and_hits(predictions: "pd.DataFrame") -> "tuple[np.ndarray, np.ndarray]":
    """Two arrays of shape (samples,): the probability of the most probable label, and whether the answer is right."""
    import numpy as np

    confidence = np.array([max(probabilities) for probabilities in predictions["probabilities"]])
    return confidence, (predictions["label"] == predictions["predicted"]).to_numpy(bool)


def reliability(confidence: "np.ndarray", right: "np.ndarray", bins: int = 15) -> list[tuple[int, float, float]]:
    """(samples, mean confidence, accuracy) per bin, least confident first. Bin sizes differ by at most one."""
    import numpy as np

    order = np.argsort(confidence, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return [(len(part), float(confidence[part].mean()), float(right[part].mean())) for part in parts]


def lenient(predictions: "pd.DataFrame", task: "Task") -> dict[str, float]:
    """lenient_accuracy: also accepts a longer text that contains exactly one label (Task.parse_leniently)."""
    right = 0
    for label, text, predicted in predictions[["label", "text", "predicted"]].itertuples(index=False):
        answer = predicted if isinstance(predicted, str) else task.parse_leniently(text)
        right += answer == label
    return {"lenient_accuracy": right / len(predictions)}


def truth_and_answers(predictions: "pd.DataFrame", labels: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """The true label and the answer of every sample, and the labels that occur as the truth, in the order of `labels`.

    An answer that is not a label is "": a false negative for the true label and a false positive for no label. Raises
    ValueError if there are no predictions, or if they contain a label that is not in `labels`.
    """
    if predictions.empty:
        raise ValueError("there are no predictions to measure")
    truth, predicted = list(predictions["label"]), [p if isinstance(p, str) else "" for p in predictions["predicted"]]
    unknown = sorted({*truth, *predicted} - {*labels, ""})
    if unknown:
        raise ValueError(f"the predictions contain the label {unknown[0]!r}, which is not one of the task's")
    occurring = set(truth)
    return truth, predicted, [label for label in labels if label in occurring]
