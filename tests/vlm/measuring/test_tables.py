import numpy as np
import pandas as pd
import pytest

from tests.vlm.measuring.splits import LABELS, SAMPLES, predictions_for
from vlm.measuring import metrics, tables
from vlm.measuring.answers import Predictions


def write(directory, frame, labels=LABELS):
    tables.write(directory, Predictions("baseline_eval", frame, labels))


@pytest.fixture(scope="module")
def written(tmp_path_factory, predictions):
    directory = tmp_path_factory.mktemp("plots") / "baseline_eval"
    write(directory, predictions)
    return directory


def test_write_writes_the_same_bytes_whatever_the_order_of_the_predictions(tmp_path, written, predictions):
    write(tmp_path, predictions.sample(frac=1, random_state=0))
    names = ["confusion.csv", "per_class.csv", "reliability.csv", "risk_coverage.csv", "top_confusions.csv"]
    assert sorted(path.name for path in written.iterdir()) == names
    for name in names:
        assert (tmp_path / name).read_bytes() == (written / name).read_bytes()


def test_confusion_counts_every_pair(written, predictions):
    table = pd.read_csv(written / "confusion.csv")
    expected = pd.crosstab(predictions["label"], predictions["predicted"].fillna(tables.NO_LABEL))
    counted = table.pivot_table(values="samples", index="actual", columns="predicted", fill_value=0).astype(int)
    pd.testing.assert_frame_equal(counted, expected, check_names=False)
    assert not table.duplicated(["actual", "predicted"]).any()


def test_confusion_has_the_places_of_its_labels_in_the_task(tmp_path, predictions):
    order = ["smart", "Volvo", "Acura", "Ford", "BMW"]  # neither alphabetical nor that of the samples
    write(tmp_path, predictions, order)
    table = pd.read_csv(tmp_path / "confusion.csv")
    assert [order[row] for row in table["row"]] == list(table["actual"])
    assert [[*order, tables.NO_LABEL][column] for column in table["column"]] == list(table["predicted"])
    assert list(table["row"]) == sorted(table["row"])


def test_confusion_has_a_row_and_a_column_for_every_label_that_occurs(tmp_path, data):
    write(tmp_path, predictions_for(data, lambda i, label: "Volvo" if i else None), [*LABELS, "Volvo", "Kia"])
    table = pd.read_csv(tmp_path / "confusion.csv")
    assert list(table["actual"].unique()) == [*LABELS, "Volvo"]
    assert set(table["predicted"]) == {*LABELS, "Volvo", tables.NO_LABEL}
    assert table["samples"].sum() == SAMPLES
    assert table[table["actual"] == table["predicted"]]["samples"].sum() == 0


def test_there_is_no_confusion_if_no_answer_is_a_label(tmp_path, data):
    write(tmp_path, predictions_for(data, lambda i, label: None))
    assert (tmp_path / "confusion.csv").read_text() == "actual,predicted,samples,row,column\n"  # DVC wants a header
    assert (tmp_path / "top_confusions.csv").read_text() == "confusion,count,rate\n"


def test_no_mistakes(tmp_path, data):
    write(tmp_path, predictions_for(data, lambda i, label: label))
    assert (tmp_path / "top_confusions.csv").read_text() == "confusion,count,rate\n"
    confusion = pd.read_csv(tmp_path / "confusion.csv")
    assert list(confusion["actual"]) == list(confusion["predicted"]) == LABELS


def test_top_confusions_are_the_wrong_labels(written, predictions):
    table = pd.read_csv(written / "top_confusions.csv")
    assert list(table.columns) == ["confusion", "count", "rate"]
    assert set(table["confusion"]) == {"Acura → BMW", "BMW → Ford", "Ford → smart", "smart → Acura"}
    assert list(table["count"]) == sorted(table["count"], reverse=True)
    of_bmw = predictions[predictions["label"] == "BMW"]
    row = table.set_index("confusion").loc["BMW → Ford"]
    assert row["count"] == (of_bmw["predicted"] == "Ford").sum()
    assert row["rate"] == pytest.approx((of_bmw["predicted"] == "Ford").mean(), abs=1e-6)


def test_equally_frequent_confusions_have_the_order_of_the_labels(tmp_path, data):
    seen = set()

    def first_wrong(i, label):
        seen_before, _ = label in seen, seen.add(label)
        return label if seen_before else LABELS[LABELS.index(label) - 1]

    order = ["Ford", "smart", "Acura", "BMW"]
    write(tmp_path, predictions_for(data, first_wrong), order)
    table = pd.read_csv(tmp_path / "top_confusions.csv")
    assert list(table["count"]) == [1] * 4
    assert [confusion.split(" → ")[0] for confusion in table["confusion"]] == order


def test_per_class_agrees_with_the_metrics_and_has_the_order_of_the_labels(tmp_path, predictions):
    order = ["Ford", "smart", "Acura", "BMW"]
    write(tmp_path, predictions, order)
    table = pd.read_csv(tmp_path / "per_class.csv")
    assert list(table.columns) == ["label", "f1", "precision", "recall", "support"]
    assert list(table["label"]) == order
    assert table["support"].sum() == SAMPLES
    values = metrics.classification(Predictions("x", predictions, order))
    assert table["f1"].mean() == pytest.approx(values["macro_f1"], abs=1e-6)
    assert table["recall"].mean() == pytest.approx(values["balanced_accuracy"], abs=1e-6)


def test_reliability_and_risk_coverage(predictions, tmp_path):
    write(tmp_path, predictions)
    assert (tmp_path / "reliability.csv").read_text() == "samples,confidence,accuracy\n"
    assert (tmp_path / "risk_coverage.csv").read_text() == "coverage,risk\n"
    certainty = np.linspace(1, 0.4, SAMPLES)  # from the most to the least confident sample
    right = predictions["label"] == predictions["predicted"]
    rows = [[p, *[(1 - p) / 3] * 3] for p in certainty]
    write(tmp_path, predictions.assign(probabilities=rows))
    bins = pd.read_csv(tmp_path / "reliability.csv")
    assert bins["samples"].tolist() == [8] * 15
    assert bins["accuracy"].mean() == pytest.approx(right.mean(), abs=1e-5)
    curve = pd.read_csv(tmp_path / "risk_coverage.csv")
    assert len(curve) == 100
    assert curve["coverage"].is_monotonic_increasing
    assert curve["risk"].iloc[-1] == pytest.approx(1 - right.mean(), abs=1e-6)
    assert curve["risk"].iloc[49] == pytest.approx(1 - right[: SAMPLES // 2].mean(), abs=1e-6)


def test_class_distribution(tmp_path):
    path = tmp_path / "plots" / "class_distribution.csv"
    tables.class_distribution(path, {"train": {"b": 2, "a, b": 1}, "test": {"b": 0, "a, b": 3}})
    assert path.read_text() == 'label,count,split\nb,2,train\n"a, b",1,train\nb,0,test\n"a, b",3,test\n'
