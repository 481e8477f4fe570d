"""The CSV files that `dvc plots` draws. Each is a function of its input, byte for byte."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vlm.measuring import metrics

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

NO_LABEL = "(no label)"
_TOP = 15  # pairs in top_confusions.csv


def write(directory: Path, predictions: "pd.DataFrame", labels: Sequence[str]) -> None:
    """Writes confusion.csv, top_confusions.csv, per_class.csv, reliability.csv and risk_coverage.csv into `directory`.

    The last two have no rows for answers without probabilities. `labels` are the task's; all tables have their order.
    Raises ValueError if there are no predictions, or a label that is not one of `labels`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    truth, answers, present = metrics.truth_and_answers(predictions, labels)
    predicted = [answer or NO_LABEL for answer in answers]
    _to_csv(_confusion(truth, predicted, labels), directory / "confusion.csv")
    _to_csv(_top_confusions(truth, predicted), directory / "top_confusions.csv")
    _to_csv(_per_class(truth, answers, present), directory / "per_class.csv")
    _write_confidence(directory, predictions)


def class_distribution(path: Path, counts: Mapping[str, Mapping[str, int]]) -> None:
    """A CSV with the rows of every label in every split; `counts` is {split: {label: rows}}."""
    import pandas as pd

    rows = [(label, count, split) for split, of_label in counts.items() for label, count in of_label.items()]
    _to_csv(pd.DataFrame(rows, columns=["label", "count", "split"]), path)


def _write_confidence(directory: Path, predictions: "pd.DataFrame") -> None:
    import pandas as pd

    bins = pd.DataFrame(columns=["samples", "confidence", "accuracy"])
    curve = pd.DataFrame(columns=["coverage", "risk"])
    if metrics.has_probabilities(predictions):
        sure, right = metrics.confidence_and_hits(predictions)
        bins = pd.DataFrame(metrics.reliability(sure, right), columns=bins.columns).round(6)
        curve = _risk_coverage(sure, right)
    _to_csv(bins, directory / "reliability.csv")
    _to_csv(curve, directory / "risk_coverage.csv")


def _confusion(truth: list[str], predicted: list[str], labels: Sequence[str]) -> "pd.DataFrame":
    """A row for each sample, in the order of the labels, which is the order in which the template draws them."""
    import pandas as pd

    place = {label: number for number, label in enumerate([*labels, NO_LABEL])}
    pairs = sorted(zip(truth, predicted, strict=True), key=lambda pair: (place[pair[0]], place[pair[1]]))
    return pd.DataFrame(pairs, columns=["actual", "predicted"])


def _top_confusions(actual: list[str], predicted: list[str]) -> "pd.DataFrame":
    """The most frequent wrong pairs; `rate` is the fraction of the label's samples that go wrong this way."""
    import pandas as pd

    samples = Counter(actual)
    pairs = Counter((a, p) for a, p in zip(actual, predicted, strict=True) if a != p)
    rows = [(f"{a} → {p}", count, round(count / samples[a], 6)) for (a, p), count in pairs.items()]
    rows.sort(key=lambda row: (-row[1], row[0]))
    return pd.DataFrame(rows[:_TOP], columns=["confusion", "count", "rate"])


def _risk_coverage(confidence: "np.ndarray", right: "np.ndarray") -> "pd.DataFrame":
    """The error rate (risk) on the fraction of samples (coverage) of which the model is surest, at 100 points."""
    import numpy as np
    import pandas as pd

    errors = np.cumsum(~right[np.argsort(-confidence, kind="stable")])
    kept = np.unique(np.ceil(len(right) * np.linspace(0.01, 1, 100)).astype(int))
    return pd.DataFrame({"coverage": kept / len(right), "risk": errors[kept - 1] / kept}).round(6)


def _per_class(truth: list[str], answers: list[str], present: list[str]) -> "pd.DataFrame":
    import pandas as pd
    from sklearn.metrics import precision_recall_fscore_support

    precision, recall, f1, support = precision_recall_fscore_support(truth, answers, labels=present, zero_division=0.0)
    columns = {"label": present, "f1": f1, "precision": precision, "recall": recall, "support": support.astype(int)}
    return pd.DataFrame(columns).round(6)


def _to_csv(table: "pd.DataFrame", path: str | Path) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False, lineterminator="\n")
