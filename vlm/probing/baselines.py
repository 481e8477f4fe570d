"""Fits the baselines to the features and writes their answers in the same form as a model's.

In the folder of predictions: majority and probe_nearest answer test, and probe_linear all splits (train cross-fitted),
each a .parquet and a .json file. If the model gives no features, the tables of the probes have no answers, and
`unavailable` in their .json files says why.
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


# What the probes answer: the predictions' name and the split
_NEAREST, _LINEAR = ("probe_nearest", "test"), ("probe_linear", "test")
_LINEAR_VALIDATION, _LINEAR_TRAIN = ("probe_linear", "validation"), ("probe_linear", "train")
_PROBES = (_NEAREST, _LINEAR, _LINEAR_VALIDATION, _LINEAR_TRAIN)


def write(task: Task, splits: Mapping[str, str], extracted: Path, directory: Path, emit: Emit) -> str:
    """Writes all baselines to `directory`, the folder of predictions; returns a summary.

    `splits` are the paths of the splits "train", "validation" and "test"; the folder `extracted` has their
    features.parquet and features.json.
    """
    truth = {split: _truth(task, data) for split, data in splits.items()}
    prior = heads.frequencies(truth["train"], len(task.labels))
    found = {("majority", "test"): (prior[None].repeat(len(truth["test"]), 0), {})}
    unavailable = json_files.read(extracted / "features.json").get("unavailable")
    if unavailable:
        found |= {probe: (None, {"unavailable": unavailable}) for probe in _PROBES}
        summary = f"the majority class is the only baseline, because the model gives no vision features: {unavailable}"
    else:
        matrices = features.read(extracted / "features.parquet")
        samples = {split: Samples(matrices[split], truth[split], len(task.labels)) for split in splits}
        answers, chosen = _probes(samples, emit)
        found |= {probe: (answers[probe], chosen[probe]) for probe in _PROBES}
        summary = (
            f"linear probe with C = {chosen[_LINEAR]['inverse_penalty']:.2g}, nearest neighbours with k = "
            f"{chosen[_NEAREST]['neighbours']}, both chosen on {len(truth['validation'])} validation samples"
        )
    for (name, split), (probabilities, values) in found.items():
        _write(directory / name / f"{split}.parquet", task, splits[split], probabilities, values)
    return summary


def _probes(samples: Mapping[str, Samples], emit: Emit) -> "tuple[dict[tuple, np.ndarray], dict[tuple, dict]]":
    """The probabilities of each of _PROBES, and what was chosen for it."""
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
        _NEAREST: by_neighbours(test.features),
        _LINEAR: by_line(test.features),
        _LINEAR_VALIDATION: by_line(validation.features),
        _LINEAR_TRAIN: heads.cross_fitted(train, inverse_penalty, fitted),
    }
    emit(Progress(total, total, "fit"))  # the search for the penalty may have ended early
    line = {"inverse_penalty": inverse_penalty}
    chosen = {probe: dict(line) for probe in _PROBES} | {_NEAREST: {"neighbours": k}}
    chosen[_LINEAR_TRAIN]["folds"] = heads.FOLDS
    return answers, chosen


def _write(file: Path, task: Task, data: str, probabilities: "np.ndarray | None", values: Mapping) -> None:
    if probabilities is None:
        rows = dataset.count(data)
        predictions.write(file, task, data, [""] * rows, [None] * rows)
    else:
        texts = [task.answer(task.labels[label]) for label in probabilities.argmax(1)]
        predictions.write(file, task, data, texts, probabilities.tolist())
    json_files.write(file.with_suffix(".json"), values)


def _truth(task: Task, data: str) -> "np.ndarray":
    """The labels of a split as indices of the task's labels."""
    import numpy as np

    _, labels = dataset.ids_and_labels(data)
    return np.array([task.labels.index(label) for label in labels])
