"""Finds samples whose label is probably wrong: confident learning (cleanlab) on the probabilities of several models.

Every model's probabilities are out of sample: it was not trained on the label that it judges. The models are the linear
probe, the base model, the fine-tuned model (which saw the labels of train, so it judges the other splits only), and the
labels of the ten pictures whose features are nearest. docs/audit.md compares them and their combination.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlm.audit.suspects import Sample, Suspect
from vlm.config.errors import InputError
from vlm.data import dataset, json_files, predictions

PROBE = "linear probe"
# What a model is called, the name of its predictions, and the splits with probabilities that are out of sample.
MODELS = {
    PROBE: ("probe_linear", ("train", "validation", "test")),
    "base model": ("structured_eval", ("validation", "test")),
    "fine-tuned model": ("final_eval", ("validation", "test")),
}
NEIGHBOURS = "nearest neighbours"
FEATURES = Path("predictions/features/features.parquet")
_NEIGHBOURS = 10

# Models that are wrong more often than right disagree with most labels, right ones too, so a list of these is no help.
LEAST_ACCURACY = 0.5


@dataclass(frozen=True)
class Judgement:
    """What the models say about the labels of `samples`.

    `probabilities` is (samples, labels): the models' mean, weighted by how well they explain the labels. `unchecked`
    are the splits without any model, `absent` the files of predictions that do not exist, and `unusable` says, a line
    each, which exist but do not fit.
    """

    samples: list[Sample]
    labels: Sequence[str]
    probabilities: np.ndarray
    unchecked: list[str]
    absent: list[Path]
    unusable: list[str]

    @property
    def given(self) -> np.ndarray:
        """The index of each sample's label, (samples,)."""
        place = {label: number for number, label in enumerate(self.labels)}
        return np.array([place[sample.label] for sample in self.samples], int)

    @property
    def accuracy(self) -> float:
        """How often the most probable label is the given one; 0 without samples."""
        return float((self.probabilities.argmax(1) == self.given).mean()) if self.samples else 0.0

    @property
    def quality(self) -> np.ndarray:
        """cleanlab's label quality of each sample, 0 to 1, the least credible label first; (samples,)."""
        from cleanlab.rank import get_label_quality_scores

        return get_label_quality_scores(self.given, self.probabilities, method="self_confidence")

    def unseen(self) -> list[str]:
        """What could not be checked and why, a line each."""
        stages = dict.fromkeys(predictions.stage(file.parent.name) for file in self.absent)
        make = f"`dvc repro {' '.join(stages)}`"
        if not self.samples and not self.unusable:
            return [f"labels: there are no predictions yet; {make} writes them"]
        lines = []
        if self.unchecked:
            lines.append(f"the labels of {', '.join(self.unchecked)}: no model has given probabilities for them")
        if self.samples and self.accuracy < LEAST_ACCURACY:
            lines.append(f"label errors: the models give only {self.accuracy:.0%} of the samples their label")
        if self.absent:
            lines.append(
                f"labels, with all models: {', '.join(map(str, self.absent))} do not exist; {make} writes them"
            )
        return lines + self.unusable


def judge(labels: Sequence[str], splits: dict[str, Path], only: str | None = None) -> Judgement:
    """Reads the predictions that there are for `splits`, {name: file}; of all models, or `only` of one.

    Predictions for other samples or labels than those in the splits are not used. Raises InputError if a file of
    `splits` is missing or has a label that is not one of `labels`.
    """
    samples = {split: _samples(split, path, labels) for split, path in splits.items()}
    of_split: dict[str, list[np.ndarray]] = {split: [] for split in splits}
    absent, unusable = [], []
    models = [only] if only else [*MODELS, NEIGHBOURS]
    if reason := _without_features():
        if {PROBE, NEIGHBOURS} & set(models):
            unusable.append(
                f"labels, with the {PROBE} and the {NEIGHBOURS}: the model gives no vision features: {reason}"
            )
        models = [model for model in models if model not in (PROBE, NEIGHBOURS)]
    for model, (name, answered) in MODELS.items():
        for split in splits:
            if split not in answered or model not in models:
                continue
            if not predictions.path(name, split).exists():
                absent.append(predictions.path(name, split))
                continue
            found = _probabilities(name, split, samples[split], len(labels))
            unusable.append(found) if isinstance(found, str) else of_split[split].append(found)
    if NEIGHBOURS in models:
        found = _neighbours(samples, labels)
        if found is None:
            absent.append(FEATURES)
        elif isinstance(found, str):
            unusable.append(found)
        else:
            for split in splits:
                of_split[split].append(found[split])
    judged = [split for split in splits if of_split[split] and samples[split]]
    place = {label: number for number, label in enumerate(labels)}
    means = [_mixture(of_split[split], [place[sample.label] for sample in samples[split]]) for split in judged]
    return Judgement(
        [sample for split in judged for sample in samples[split]],
        labels,
        np.concatenate([np.empty((0, len(labels))), *means]),
        [split for split in splits if split not in judged],
        absent,
        unusable,
    )


def label_errors(judgement: Judgement) -> list[Suspect]:
    """The samples whose label is probably wrong, as many as cleanlab estimates that there are.

    None if the models are wrong about more than half of the samples, or if all samples have one label.
    """
    from cleanlab.filter import find_label_issues

    given = judgement.given
    if len(set(given.tolist())) < 2 or judgement.accuracy < LEAST_ACCURACY:
        return []
    flagged = find_label_issues(given, judgement.probabilities, filter_by="low_self_confidence", n_jobs=1)
    quality, suspects = judgement.quality, []
    for i in np.flatnonzero(flagged).tolist():
        best = int(judgement.probabilities[i].argmax())
        if best == given[i]:
            continue
        sample, p = judgement.samples[i], judgement.probabilities[i]
        suggestion = judgement.labels[best]
        reason = f"The models give {suggestion!r} {_percent(p[best])}, {sample.label!r} {_percent(p[given[i]])}."
        suspects.append(Suspect(sample, "label_error", float(1 - quality[i]), reason, suggestion))
    return suspects


def _samples(split: str, path: Path, labels: Sequence[str]) -> list[Sample]:
    """The samples of a split. Raises InputError if one has a label that is not one of `labels`, the task's."""
    samples = [Sample(split, id_, label) for id_, label in zip(*dataset.ids_and_labels(path), strict=True)]
    for sample in samples:
        if sample.label not in labels:
            raise InputError(
                f"{path}: label {sample.label!r} is not one of the task's labels; `dvc repro prepare` writes it again"
            )
    return samples


def _without_features() -> str | None:
    """Why the model gives no vision features; None if it does, or if the stage `probe` has not run."""
    path = FEATURES.with_suffix(".json")
    return json_files.read(path).get("unavailable") if path.exists() else None


def _percent(p: float) -> str:
    return f"{100 * p:.1f} %" if p >= 0.001 else "less than 0.1 %"


def _probabilities(name: str, split: str, samples: list[Sample], labels: int) -> np.ndarray | str:
    """The probabilities of a model's answers to a split, (samples, labels); or why they cannot be used."""
    path = predictions.path(name, split)
    stage = predictions.stage(name)
    again = f"`dvc repro {stage}`"
    table = predictions.read(name, split)
    if list(zip(table["id"], table["label"], strict=True)) != [(sample.id, sample.label) for sample in samples]:
        return f"{path}: answers to other samples than those of the split; {again} writes it again"
    if table["probabilities"].isna().any():
        remedy = f"{again} writes it again" if stage == "probe" else "structured_eval.engine: posterior gives them"
        return f"{path}: has no probabilities; {remedy}"
    if any(len(row) != labels for row in table["probabilities"]):
        return f"{path}: answers with other labels than the task's; {again} writes it again"
    return np.stack(table["probabilities"].to_list())


def _neighbours(samples: dict[str, list[Sample]], labels: Sequence[str]) -> dict[str, np.ndarray] | str | None:
    """By split, the label frequencies among each sample's ten nearest neighbours in all splits, itself left out.

    They are smoothed with one more neighbour that has all labels in their proportions. Or why the features cannot be
    used; None if there are none.
    """
    import pandas as pd
    from sklearn.neighbors import NearestNeighbors
    from sklearn.preprocessing import normalize, scale

    if not FEATURES.exists():
        return None
    table = pd.read_parquet(FEATURES).set_index(["split", "id"])["features"]
    every = [sample for of_split in samples.values() for sample in of_split]
    wanted = [(sample.split, sample.id) for sample in every]
    if not table.index.is_unique or not set(wanted) <= set(table.index):
        return f"{FEATURES}: does not have the features of all samples; `dvc repro probe` writes it again"
    if len(every) <= _NEIGHBOURS:
        return f"{FEATURES}: there are too few samples to look at the {_NEIGHBOURS} nearest of each"
    features = normalize(scale(np.stack(table.loc[wanted].to_list()).astype(np.float64)))
    search = NearestNeighbors(n_neighbors=_NEIGHBOURS + 1).fit(features)
    nearest = search.kneighbors(features, return_distance=False)
    place = {label: number for number, label in enumerate(labels)}
    given = np.array([place[sample.label] for sample in every])
    counts = np.zeros((len(every), len(labels)))
    for i, row in enumerate(nearest):
        others = row[row != i][:_NEIGHBOURS]  # a sample with a copy may not be its own nearest neighbour
        counts[i] = np.bincount(given[others], minlength=len(labels))
    smoothed = (counts + np.bincount(given, minlength=len(labels)) / len(given)) / (_NEIGHBOURS + 1)
    ends = np.cumsum([len(of_split) for of_split in samples.values()])
    return dict(zip(samples, np.split(smoothed, ends[:-1]), strict=True))


def _mixture(models: list[np.ndarray], given: list[int]) -> np.ndarray:
    """The mean of the models' probabilities, (samples, labels), with the weights that make the labels most likely.

    Expectation-maximization for the weights of a mixture (A. P. Dempster et al., J. R. Stat. Soc. B 39 (1977), 1-38),
    from equal weights. A model that is no better than chance beside a good one ends with a weight of nearly 0.
    """
    stacked = np.stack(models)  # (models, samples, labels)
    of_given = stacked[:, np.arange(len(given)), given]
    weights = np.full(len(models), 1 / len(models))
    for _ in range(100):
        shares = weights[:, None] * np.maximum(of_given, 1e-12)
        weights = (shares / shares.sum(0)).mean(1)
    return np.einsum("m,msl->sl", weights, stacked)
