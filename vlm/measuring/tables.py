"""The CSV files that `dvc plots` draws. Equal predictions give equal files, byte for byte."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vlm.measuring import metrics
from vlm.measuring.answers import NO_LABEL, Predictions

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

_TOP = 15  # pairs in top_confusions.csv


def write(directory: Path, predictions: Predictions) -> None:
    """Writes confusion.csv, top_confusions.csv, per_class.csv, reliability.csv and risk_coverage.csv into `directory`.

    Wherever labels are listed they are in the task's order. A file with nothing to show has only its header:
    confusion.csv if no answer is a label, top_confusions.csv if no answer is a wrong label, and the last two if the
    answers have no probabilities.
    """
    directory.mkdir(parents=True, exist_ok=True)
    matrix = predictions.confusion()
    _to_csv(_confusion(matrix, predictions.labels), directory / "confusion.csv")
    _to_csv(_top_confusions(matrix), directory / "top_confusions.csv")
    _to_csv(predictions.per_class().round(6).reset_index(), directory / "per_class.csv")
    _write_confidence(directory, predictions)


def class_distribution(path: Path, counts: Mapping[str, Mapping[str, int]]) -> None:
    """Writes a CSV with one row per split and label; `counts` is {split: {label: number of samples}}."""
    import pandas as pd

    rows = [(label, count, split) for split, of_label in counts.items() for label, count in of_label.items()]
    _to_csv(pd.DataFrame(rows, columns=["label", "count", "split"]), path)


def _write_confidence(directory: Path, predictions: Predictions) -> None:
    import pandas as pd

    bins = pd.DataFrame(columns=["samples", "confidence", "accuracy"])
    curve = pd.DataFrame(columns=["coverage", "risk"])
    if predictions.has_probabilities:
        confidence, right = (predictions.frame[column].to_numpy() for column in ("confidence", "right"))
        bins = pd.DataFrame(metrics.reliability(confidence, right), columns=bins.columns).round(6)
        curve = _risk_coverage(confidence, right)
    _to_csv(bins, directory / "reliability.csv")
    _to_csv(curve, directory / "risk_coverage.csv")


def _confusion(matrix: "pd.DataFrame", labels: tuple[str, ...]) -> "pd.DataFrame":
    """One row per cell of Predictions.confusion that is not zero, and one per cell of its diagonal even if it is.

    `row` and `column` are a label's place in `labels`: the templates of `dvc plots` cannot see the task's order. If no
    answer is a label, there are no rows: the matrix would be a single column that says no more than `valid`.
    """
    import pandas as pd

    place = {label: number for number, label in enumerate([*labels, NO_LABEL])}
    answered = matrix.drop(columns=NO_LABEL, errors="ignore").to_numpy().any()
    rows = [
        (actual, answer, count, place[actual], place[answer])
        for (actual, answer), count in matrix.stack().items()
        if answered and (count or actual == answer)
    ]
    return pd.DataFrame(rows, columns=["actual", "predicted", "samples", "row", "column"])


def _top_confusions(matrix: "pd.DataFrame") -> "pd.DataFrame":
    """The 15 most frequent pairs of a label and a wrong label; `rate` is the fraction of the label's samples.

    Equally frequent pairs are in the order of the labels. Answers that are no label are left out: they confuse nothing,
    and the metric `valid` counts them.
    """
    import pandas as pd

    samples = matrix.sum(axis=1)
    pairs = matrix.drop(columns=NO_LABEL, errors="ignore").stack()
    pairs = pairs[(pairs > 0) & (pairs.index.get_level_values(0) != pairs.index.get_level_values(1))]
    top = pairs.sort_values(ascending=False, kind="stable").head(_TOP)
    rows = [(f"{actual} → {answer}", n, round(n / samples[actual], 6)) for (actual, answer), n in top.items()]
    return pd.DataFrame(rows, columns=["confusion", "count", "rate"])


def _risk_coverage(confidence: "np.ndarray", right: "np.ndarray") -> "pd.DataFrame":
    """The error rate (risk) on the most confident fraction of the samples (coverage), at up to 100 fractions."""
    import numpy as np
    import pandas as pd

    errors = np.cumsum(~right[np.argsort(-confidence, kind="stable")])
    kept = np.unique(np.ceil(len(right) * np.linspace(0.01, 1, 100)).astype(int))
    return pd.DataFrame({"coverage": kept / len(right), "risk": errors[kept - 1] / kept}).round(6)


def _to_csv(table: "pd.DataFrame", path: str | Path) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False, lineterminator="\n")
