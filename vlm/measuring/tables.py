"""The CSV files that `dvc plots` draws. Equal predictions give equal files, byte for byte."""

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

    `labels` are the task's; wherever labels are listed they are in this order. A file with nothing to show has only its
    header: confusion.csv if no answer is a label, top_confusions.csv if no answer is a wrong label, and the last two if
    the answers have no probabilities.
    Raises ValueError if there are no predictions, or if they contain a label that is not in `labels`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    truth, answers, present = metrics.truth_and_answers(predictions, labels)
    _to_csv(_confusion(truth, answers, labels), directory / "confusion.csv")
    _to_csv(_top_confusions(truth, answers, labels), directory / "top_confusions.csv")
    _to_csv(_per_class(truth, answers, present), directory / "per_class.csv")
    _write_confidence(directory, predictions)


def class_distribution(path: Path, counts: Mapping[str, Mapping[str, int]]) -> None:
    """Writes a CSV with one row per split and label; `counts` is {split: {label: number of samples}}."""
    import pandas as pd

    rows = [(label, count, split) for split, of_label in counts.items() for label, count in of_label.items()]
    _to_csv(pd.DataFrame(rows, columns=["label", "count", "split"]), path)


def _write_confidence(directory: Path, predictions: "pd.DataFrame") -> None:
    import pandas as pd

    bins = pd.DataFrame(columns=["samples", "confidence", "accuracy"])
    curve = pd.DataFrame(columns=["coverage", "risk"])
    if metrics.has_probabilities(predictions):
        confidence, right = metrics.confidence_and_hits(predictions)
        bins = pd.DataFrame(metrics.reliability(confidence, right), columns=bins.columns).round(6)
        curve = _risk_coverage(confidence, right)
    _to_csv(bins, directory / "reliability.csv")
    _to_csv(curve, directory / "risk_coverage.csv")


def _confusion(truth: list[str], answers: list[str], labels: Sequence[str]) -> "pd.DataFrame":
    """One row per cell of the confusion matrix that is not zero, and one per cell of its diagonal even if it is.

    The matrix is square over the labels that occur as truth or answer, plus a column for answers that are no label.
    `row` and `column` are a label's place in `labels`: the templates of `dvc plots` cannot see the task's order.
    If no answer is a label, there are no rows: the matrix would be a single column that says no more than `valid`.
    """
    import pandas as pd

    cells = Counter(zip(truth, (answer or NO_LABEL for answer in answers), strict=True)) if any(answers) else {}
    occurring = {label for pair in cells for label in pair} - {NO_LABEL}
    cells = {(label, label): 0 for label in occurring} | cells
    place = {label: number for number, label in enumerate([*labels, NO_LABEL])}
    rows = sorted((place[actual], place[answer], actual, answer, count) for (actual, answer), count in cells.items())
    table = pd.DataFrame(rows, columns=["row", "column", "actual", "predicted", "samples"])
    return table[["actual", "predicted", "samples", "row", "column"]]


def _top_confusions(truth: list[str], answers: list[str], labels: Sequence[str]) -> "pd.DataFrame":
    """The 15 most frequent pairs of a label and a wrong label; `rate` is the fraction of the label's samples.

    Equally frequent pairs are in the order of `labels`. Answers that are no label are left out: they confuse nothing,
    and the metric `valid` counts them.
    """
    import pandas as pd

    samples = Counter(truth)
    pairs = Counter(
        (actual, answer) for actual, answer in zip(truth, answers, strict=True) if answer not in ("", actual)
    )
    place = {label: number for number, label in enumerate(labels)}
    top = sorted(pairs, key=lambda pair: (-pairs[pair], place[pair[0]], place[pair[1]]))[:_TOP]
    rows = [(" → ".join(pair), pairs[pair], round(pairs[pair] / samples[pair[0]], 6)) for pair in top]
    return pd.DataFrame(rows, columns=["confusion", "count", "rate"])


def _risk_coverage(confidence: "np.ndarray", right: "np.ndarray") -> "pd.DataFrame":
    """The error rate (risk) on the most confident fraction of the samples (coverage), at up to 100 fractions."""
    import numpy as np
    import pandas as pd

    errors = np.cumsum(~right[np.argsort(-confidence, kind="stable")])
    kept = np.unique(np.ceil(len(right) * np.linspace(0.01, 1, 100)).astype(int))
    return pd.DataFrame({"coverage": kept / len(right), "risk": errors[kept - 1] / kept}).round(6)


def _per_class(truth: list[str], answers: list[str], present: list[str]) -> "pd.DataFrame":
    """F1, precision, recall and number of samples of each label in `present`, those that occur as the truth."""
    import pandas as pd
    from sklearn.metrics import precision_recall_fscore_support

    precision, recall, f1, support = precision_recall_fscore_support(truth, answers, labels=present, zero_division=0.0)
    columns = {"label": present, "f1": f1, "precision": precision, "recall": recall, "support": support.astype(int)}
    return pd.DataFrame(columns).round(6)


def _to_csv(table: "pd.DataFrame", path: str | Path) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False, lineterminator="\n")
