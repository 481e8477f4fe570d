"""Computes metrics from predictions. All samples count: an answer that is not a label is a wrong answer."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vlm.config.errors import InputError
from vlm.evaluation import calibration
from vlm.evaluation.intervals import wilson
from vlm.measuring.answers import Predictions

if TYPE_CHECKING:
    import numpy as np

    from vlm.config.task import Task


def of(predictions: Predictions, task: "Task", found: Mapping[str, Any]) -> dict[str, float | int]:
    """All metrics that apply to the predictions: those of probabilities if there are any, else those of raw answers.

    `found` is what predictions/<name>/test.json has: with a calibration (vlm/evaluation/calibration.py), there are
    calibrated metrics; with a label prior, there are those of the answers before it was corrected. Raises InputError if
    there are no answers.
    """
    if predictions.frame.empty:
        raise InputError(f"{predictions.file}: has no answers; is {predictions.data} empty?")
    values = classification(predictions)
    if predictions.has_probabilities:
        del values["valid"]  # always 1
        values |= posterior(predictions)
    else:
        values |= lenient(predictions, task)
    if "temperature" in found:
        values |= calibrated(predictions, found)
    if "prior" in found:
        values |= plain(predictions)
    return values


def classification(predictions: Predictions) -> dict[str, float | int]:
    """Number of samples, accuracy and its 95 % Wilson interval (low, high), valid, balanced accuracy and macro F1.

    `valid` is the fraction of answers that are a label. Balanced accuracy and macro F1 are means over the labels that
    occur as the truth.
    """
    frame, of_class = predictions.frame, predictions.per_class()
    n, right = len(frame), int(frame["right"].sum())
    low, high = wilson(right, n)
    return {
        "samples": n,
        "accuracy": right / n,
        "low": low,
        "high": high,
        "valid": float(frame["predicted"].notna().mean()),
        "balanced_accuracy": float(of_class["recall"].mean()),
        "macro_f1": float(of_class["f1"].mean()),
    }


def posterior(predictions: Predictions) -> dict[str, float]:
    """How good the probabilities over the labels are.

    - top_3_accuracy: how often the truth is among the three most probable labels.
    - log_loss: mean negative log-likelihood of the truth, in nats, of a probability of at least 2.2e-16.
    - brier_score: mean squared distance between the probabilities and the one-hot truth, 0 to 2 (G. W. Brier, Monthly
      Weather Review 78 (1950), 1-3).
    - ece: expected calibration error over 15 bins of equal mass (as in M. Minderer et al., NeurIPS 2021).
    - accuracy_at_C, for C = 50, 80, 90, 95: accuracy on the C % of the samples with the highest confidence.
    """
    import numpy as np

    frame, labels = predictions.frame, predictions.labels
    probabilities = np.stack(frame["probabilities"].to_list())
    truth = np.array([labels.index(label) for label in frame["label"]])
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :3]
    of_truth = probabilities[np.arange(len(truth)), truth]
    values = {
        "top_3_accuracy": float((best == truth[:, None]).any(1).mean()),
        "log_loss": float(-np.log(np.maximum(of_truth, np.finfo(float).eps)).mean()),
        "brier_score": float(((probabilities - np.eye(len(labels))[truth]) ** 2).sum(1).mean()),
    }
    confidence, right = frame["confidence"].to_numpy(), frame["right"].to_numpy()
    bins = reliability(confidence, right)
    values["ece"] = float(sum(n * abs(p - accuracy) for n, p, accuracy in bins) / len(right))
    most_confident_first = np.argsort(-confidence, kind="stable")
    for coverage in (50, 80, 90, 95):
        kept = most_confident_first[: math.ceil(len(right) * coverage / 100)]
        values[f"accuracy_at_{coverage}"] = float(right[kept].mean())
    return values


def calibrated(predictions: Predictions, fitted: Mapping[str, Any]) -> dict[str, float]:
    """accuracy with its interval (low, high), log_loss, brier_score and ece of calibrated answers, as calibrated_*.

    `fitted` is what vlm/evaluation/calibration.py fitted on validation. A temperature alone changes no answer.
    """
    scaled = calibration.apply(predictions.frame["probabilities"], fitted)
    best = [predictions.labels[label] for label in scaled.argmax(1)]
    frame = predictions.frame.assign(probabilities=list(scaled), predicted=best)
    return _selected("calibrated", Predictions(predictions.name, frame, predictions.labels))


def plain(predictions: Predictions) -> dict[str, float]:
    """The same, as plain_*, of the answers before the label prior was corrected."""
    return _selected("plain", predictions.plain())


def _selected(prefix: str, predictions: Predictions) -> dict[str, float]:
    values = classification(predictions) | posterior(predictions)
    return {f"{prefix}_{name}": values[name] for name in ("accuracy", "low", "high", "log_loss", "brier_score", "ece")}


def reliability(confidence: "np.ndarray", right: "np.ndarray", bins: int = 15) -> list[tuple[int, float, float]]:
    """(samples, mean confidence, accuracy) per bin, least confident first. Bin sizes differ by at most one."""
    import numpy as np

    order = np.argsort(confidence, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return [(len(part), float(confidence[part].mean()), float(right[part].mean())) for part in parts]


def lenient(predictions: Predictions, task: "Task") -> dict[str, float]:
    """lenient_accuracy: also accepts a longer text that contains exactly one label (Task.parse_leniently)."""
    frame, right = predictions.frame, 0
    for label, text, predicted in frame[["label", "text", "predicted"]].itertuples(index=False):
        answer = predicted if isinstance(predicted, str) else task.parse_leniently(text)
        right += answer == label
    return {"lenient_accuracy": right / len(frame)}
