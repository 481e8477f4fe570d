"""The answers of every model, in the form that the page reads: columns in the order of the test split."""

from collections.abc import Collection, Container, Mapping
from typing import TYPE_CHECKING, Any

from vlm.config.errors import InputError
from vlm.data import dataset, json_files, predictions
from vlm.evaluation.intervals import wilson
from vlm.measuring import metrics
from vlm.measuring.answers import Predictions
from vlm.report import seriation

if TYPE_CHECKING:
    from vlm.config.task import Task

TEST = "data/test.parquet"
PLAIN = "structured_plain"  # structured_eval before its label prior was corrected, if it was
# Names of predictions, in the order of the page, and their titles
TITLES = {
    "majority": "Majority class",
    "probe_nearest": "Nearest neighbours",
    "probe_linear": "Linear probe",
    "baseline_eval": "Raw",
    PLAIN: "Structured",
    "structured_eval": "Structured",
    "final_eval_raw": "Fine-tuned, raw",
    "final_eval": "Fine-tuned, structured",
    "edge_eval": "Exported",
}
BASELINES = ("majority", "probe_nearest", "probe_linear")
_TOP = 5  # labels whose probabilities the page shows


def titles(names: Container[str]) -> dict[str, str]:
    """What the page calls the predictions, by name, if those of `names` are on it."""
    return TITLES | ({"structured_eval": "Structured, prior corrected"} if PLAIN in names else {})


def load(stale: Collection[str] = ()) -> tuple[dict[str, Predictions], list[str]]:
    """The predictions of the test split that exist, by name, and the names of those left out: of the stages `stale`.

    PLAIN is made from structured_eval.

    Raises InputError if there are none, or if any of them are of other samples than data/test.parquet.
    """
    there = [name for name in TITLES if _is_there(name)]
    left_out = [name for name in there if predictions.stage(name) in stale]
    found = {name: Predictions.load(name) for name in there if name not in left_out}
    if not found:
        reason = "all are of another model or task than params.yaml" if left_out else "there are none to report"
        raise InputError(
            f"predictions/: {reason}; `dvc repro` makes them, "
            f"`dvc repro measure@structured_eval` without fine-tuning, `dvc pull` fetches them"
        )
    ids, labels = dataset.ids_and_labels(TEST)
    if "edge_eval" in found and len(found["edge_eval"].frame) < len(ids):  # export.samples: the page shows all samples
        del found["edge_eval"]
    for name, answers in found.items():
        if list(answers.frame["id"]) != ids or list(answers.frame["label"]) != labels:
            raise InputError(f"{predictions.path(name)}: is of other samples than {TEST}; `dvc repro` makes it anew")
    corrected = found.get("structured_eval")
    if corrected and corrected.plain() is not corrected:
        found[PLAIN] = corrected.plain(PLAIN)
    return found, left_out


def _is_there(name: str) -> bool:
    """Whether there are predictions of this name.

    The probes of a model without a vision tower have no answers, nor has the export of a model that llama.cpp does not
    run.
    """
    notes = predictions.notes_path(name)
    if notes.exists() and "unavailable" in json_files.read(notes):
        return False
    return predictions.path(name).exists()


def leading(names: Mapping[str, Any]) -> str:
    """The predictions that the page shows first: final_eval, or the last of TITLES, those of the most capable model."""
    return "final_eval" if "final_eval" in names else [name for name in TITLES if name in names][-1]


def columns(model: Predictions, task: "Task", title: str) -> dict[str, Any]:
    """The accuracy of a model with its 95 % interval, and a list for each thing that the page shows of a sample.

    - predicted: the answer's place among the task's labels; -1 for an answer that is no label
    - texts: what the model wrote; null where it is the form of an answer that the task prescribes
    - confidence: the probability of the most probable label
    - loss: the negative log-likelihood of the true label, in nats
    - top: the five most probable labels, as [place, probability, place, probability, ...]

    The last three are None without probabilities, `texts` if there is no text of its own.
    """
    import numpy as np

    frame, place = model.frame, {label: number for number, label in enumerate(model.labels)}
    right, n = int(frame["right"].sum()), len(frame)
    low, high = wilson(right, n)
    answers = [answer if isinstance(answer, str) else None for answer in frame["predicted"]]
    prescribed = {label: task.answer(label) for label in model.labels}
    texts = [
        None if answer and text == prescribed[answer] else text
        for answer, text in zip(answers, frame["text"], strict=True)
    ]
    found = {
        "name": model.name,
        "title": title,
        "baseline": model.name in BASELINES,
        "right": right,
        "accuracy": right / n,
        "low": low,
        "high": high,
        "order": seriation.order(model),
        "predicted": [place[answer] if answer else -1 for answer in answers],
        "texts": texts if any(text is not None for text in texts) else None,
        "confidence": None,
        "loss": None,
        "top": None,
    }
    if not model.has_probabilities:
        return found | {"lenient": metrics.lenient(model, task)["lenient_accuracy"]}
    probabilities = np.stack(frame["probabilities"].to_list())
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :_TOP]
    truth = probabilities[np.arange(n), [place[label] for label in frame["label"]]]
    return found | {
        "confidence": [round(float(p), 6) for p in frame["confidence"]],
        "loss": [round(float(loss), 3) for loss in -np.log(np.maximum(truth, 1e-12))],
        "top": [
            [value for label in labels for value in (int(label), round(float(row[label]), 4))]
            for row, labels in zip(probabilities, best, strict=True)
        ],
    }
