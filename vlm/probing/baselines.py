"""Fits the baselines to the features and writes their answers in the same form as a model's.

In the folder of predictions: majority, probe_nearest and probe_linear (test), probe_linear_validation, and
probe_linear_train (cross-fitted), each a .parquet and a .json file. If the model gives no features, the tables of the
probes have no answers, and `unavailable` in their .json files says why.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vlm.config.events import Emit, Progress
from vlm.config.task import Task
from vlm.data import dataset, json_files, predictions
from vlm.probing import features, heads
from vlm.probing.heads import Samples

if TYPE_CHECKING:
    import numpy as np


# The tables of the probes, and the split that each of them answers
_PROBES = {
    "probe_nearest": "test",
    "probe_linear": "test",
    "probe_linear_validation": "validation",
    "probe_linear_train": "train",
}


def write(task: Task, splits: Mapping[str, str], directory: Path, emit: Emit) -> str:
    """Writes all baselines to `directory`, which has features.parquet and features.json; returns a summary.

    `splits` are the paths of the splits "train", "validation" and "test".
    """
    truth = {split: _truth(task, data) for split, data in splits.items()}
    prior = heads.frequencies(truth["train"], len(task.labels))
    found = {"majority": ("test", prior[None].repeat(len(truth["test"]), 0), {})}
    unavailable = json_files.read(directory / "features.json").get("unavailable")
    if unavailable:
        found |= {name: (split, None, {"unavailable": unavailable}) for name, split in _PROBES.items()}
        summary = f"the majority class is the only baseline, because the model gives no vision features: {unavailable}"
    else:
        matrices = features.read(directory / "features.parquet")
        samples = {split: Samples(matrices[split], truth[split], len(task.labels)) for split in splits}
        answers, chosen = _probes(samples, emit)
        found |= {name: (split, answers[name], chosen[name]) for name, split in _PROBES.items()}
        summary = (
            f"linear probe with C = {chosen['probe_linear']['inverse_penalty']:.2g}, nearest neighbours with k = "
            f"{chosen['probe_nearest']['neighbours']}, both chosen on {len(truth['validation'])} validation samples"
        )
    for name, (split, probabilities, values) in found.items():
        _write(directory / name, task, splits[split], probabilities, values)
    return summary


def _probes(samples: Mapping[str, Samples], emit: Emit) -> "tuple[dict[str, np.ndarray], dict[str, dict]]":
    """The probabilities of every table of _PROBES, and what was chosen for it."""
    train, validation, test = samples["train"], samples["validation"], samples["test"]
    total, done = heads.MOST_FITS, 0

    def fitted() -> None:
        nonlocal done
        done += 1
        emit(Progress(done, total, "fit"))

    emit(Progress(0, total, "fit"))
    k, by_neighbours = heads.nearest(train, validation)
    inverse_penalty = heads.best_inverse_penalty(train, validation, fitted)
    by_line = heads.linear(train, inverse_penalty)
    answers = {
        "probe_nearest": by_neighbours(test.features),
        "probe_linear": by_line(test.features),
        "probe_linear_validation": by_line(validation.features),
        "probe_linear_train": heads.cross_fitted(train, inverse_penalty, fitted),
    }
    emit(Progress(total, total, "fit"))  # the search for the penalty may have ended early
    line = {"inverse_penalty": inverse_penalty}
    chosen = {name: dict(line) for name in _PROBES} | {"probe_nearest": {"neighbours": k}}
    chosen["probe_linear_train"]["folds"] = heads.FOLDS
    return answers, chosen


def _write(path: Path, task: Task, data: str, probabilities: "np.ndarray | None", values: Mapping) -> None:
    if probabilities is None:
        rows = dataset.count(data)
        predictions.write(path.with_suffix(".parquet"), task, data, [""] * rows, [None] * rows)
    else:
        texts = [task.answer(task.labels[label]) for label in probabilities.argmax(1)]
        predictions.write(path.with_suffix(".parquet"), task, data, texts, probabilities.tolist())
    json_files.write(path.with_suffix(".json"), values)


def _truth(task: Task, data: str) -> "np.ndarray":
    """The labels of a split as indices of the task's labels."""
    import numpy as np

    _, labels = dataset.ids_and_labels(data)
    return np.array([task.labels.index(label) for label in labels])
