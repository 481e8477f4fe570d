from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score, f1_score

from vlm.config.errors import InputError
from vlm.evaluation import calibration
from vlm.evaluation.intervals import wilson
from vlm.measuring import metrics
from vlm.measuring.answers import Predictions


def table(*rows):
    """Predictions from (truth, predicted or None), ids in order."""
    truth, predicted = zip(*rows, strict=True)
    return pd.DataFrame(
        {
            "id": [f"s{i}" for i in range(len(rows))],
            "label": truth,
            "text": [answer or "no idea" for answer in predicted],
            "predicted": predicted,
            "probabilities": None,
            "plain_probabilities": None,
        }
    )


def classification(frame, labels):
    return metrics.classification(Predictions("x", frame, labels))


def posterior(frame, labels):
    return metrics.posterior(Predictions("x", frame, labels))


def test_classification_by_hand():
    # a: 2 samples, one right, one invalid. b: 1 sample, right. c: the truth of none, answered once for a b.
    values = classification(table(("a", "a"), ("a", None), ("b", "b"), ("b", "c")), ["a", "b", "c"])
    low, high = wilson(2, 4)
    f1 = 2 * 1 * 0.5 / 1.5  # of a and of b: precision 1, recall 1/2
    assert values == pytest.approx(
        {
            "samples": 4,
            "accuracy": 0.5,
            "low": low,
            "high": high,
            "valid": 0.75,
            "balanced_accuracy": 0.5,
            "macro_f1": f1,
        }
    )
    assert {type(value) for value in values.values()} == {int, float}


def test_classification_agrees_with_scikit_learn():
    rng = np.random.default_rng(1)
    labels = list("abcde")
    truth = rng.choice(labels, 300, p=[0.5, 0.2, 0.15, 0.1, 0.05])
    predicted = [label if rng.random() < 0.6 else rng.choice([*labels, ""]) for label in truth]
    values = classification(table(*zip(truth, [p or None for p in predicted], strict=True)), labels)
    assert values["accuracy"] == pytest.approx(np.mean(truth == np.array(predicted)))
    assert values["macro_f1"] == pytest.approx(f1_score(truth, predicted, labels=labels, average="macro"))
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        assert values["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, predicted))


@pytest.mark.parametrize("nothing", [None, np.nan])
def test_a_model_that_never_gives_a_label_has_zeros_everywhere(nothing):
    values = classification(table(("a", nothing), ("b", nothing)), ["a", "b"])
    assert values["samples"] == 2
    for name in ("accuracy", "low", "valid", "balanced_accuracy", "macro_f1"):
        assert values[name] == 0.0
    assert values["high"] == pytest.approx(binomtest(0, 2).proportion_ci(method="wilson").high)


def test_predictions_mean_the_same_after_a_round_trip_through_parquet(tmp_path):
    predictions = table(("a", "a"), ("a", None), ("b", "b"))
    predictions.to_parquet(tmp_path / "p.parquet")
    again = pd.read_parquet(tmp_path / "p.parquet")
    assert classification(again, ["a", "b"]) == classification(predictions, ["a", "b"])


# Probabilities


def sure(*rows):
    """Predictions over a, b, c from (truth, probabilities)."""
    labels = "abc"
    predictions = table(*((truth, labels[int(np.argmax(p))]) for truth, p in rows))
    return predictions.assign(probabilities=[list(p) for _, p in rows])


def test_probability_metrics_by_hand():
    rows = [("a", (0.9, 0.1, 0.0)), ("b", (0.6, 0.4, 0.0)), ("c", (0.3, 0.2, 0.5)), ("a", (0.2, 0.8, 0.0))]
    values = posterior(sure(*rows), list("abc"))
    assert values["top_3_accuracy"] == 1
    assert values["log_loss"] == pytest.approx(-np.log([0.9, 0.4, 0.5, 0.2]).mean())
    brier = [0.01 + 0.01, 0.36 + 0.36, 0.09 + 0.04 + 0.25, 0.64 + 0.64]
    assert values["brier_score"] == pytest.approx(np.mean(brier))
    # Fewer samples than bins: a bin a sample
    gaps = [abs(1 - 0.9), abs(0 - 0.6), abs(1 - 0.5), abs(0 - 0.8)]
    assert values["ece"] == pytest.approx(np.mean(gaps))
    # From sure to unsure: right, wrong, wrong, right
    assert values["accuracy_at_50"] == 0.5
    assert values["accuracy_at_80"] == values["accuracy_at_95"] == 0.5
    assert posterior(sure(*rows[:1]), list("abc"))["accuracy_at_50"] == 1


def random_posterior(rng, samples, labels, sharpness=1.0):
    logits = rng.normal(size=(samples, len(labels))) * 2
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    truth = [labels[rng.choice(len(labels), p=row)] for row in p]
    scaled = p**sharpness / (p**sharpness).sum(1, keepdims=True)
    predictions = table(*zip(truth, [labels[i] for i in scaled.argmax(1)], strict=True))
    return predictions.assign(probabilities=list(scaled))


def test_top_three_and_coverage():
    rng, labels = np.random.default_rng(0), list("abcdefgh")
    predictions = random_posterior(rng, 400, labels)
    values = posterior(predictions, labels)
    p = np.stack(predictions["probabilities"])
    truth = np.array([labels.index(label) for label in predictions["label"]])
    among = (np.argsort(-p, axis=1)[:, :3] == truth[:, None]).any(axis=1)
    assert values["top_3_accuracy"] == pytest.approx(among.mean())
    right = p.argmax(1) == truth
    for coverage in (50, 80, 90, 95):
        surest = np.argsort(-p.max(1))[: int(np.ceil(4 * coverage))]
        assert values[f"accuracy_at_{coverage}"] == pytest.approx(right[surest].mean())
    assert values["accuracy_at_50"] > right.mean()


def test_honest_probabilities_have_a_small_ece_and_sharpened_ones_a_large_one():
    labels = list("abcdefgh")
    honest = posterior(random_posterior(np.random.default_rng(0), 4000, labels), labels)
    sharp = posterior(random_posterior(np.random.default_rng(0), 4000, labels, 3.0), labels)
    assert honest["ece"] < 0.03
    assert sharp["ece"] > 0.15


def test_a_temperature_mends_the_probabilities_and_changes_no_answer():
    labels = list("abcdefgh")
    validation = random_posterior(np.random.default_rng(1), 4000, labels, 3.0)
    truth = [labels.index(label) for label in validation["label"]]
    fitted = calibration.fit("temperature", validation["probabilities"], truth)
    predictions = random_posterior(np.random.default_rng(2), 4000, labels, 3.0)
    values = metrics.calibrated(Predictions("x", predictions, labels), fitted)
    before = classification(predictions, labels) | posterior(predictions, labels)
    for name in ("log_loss", "brier_score", "ece"):
        assert values[f"calibrated_{name}"] < before[name]
    for name in ("accuracy", "low", "high"):
        assert values[f"calibrated_{name}"] == before[name]


def test_a_bias_changes_answers():
    rows = sure(("a", (0.6, 0.4, 0.0)), ("b", (0.6, 0.4, 0.0)), ("b", (0.5, 0.5, 0.0)), ("c", (0.1, 0.1, 0.8)))
    values = metrics.calibrated(Predictions("x", rows, list("abc")), {"temperature": 1.0, "bias": [-1.0, 1.0, 0.0]})
    assert values["calibrated_accuracy"] == 0.75
    assert values["calibrated_low"], values["calibrated_high"] == pytest.approx(wilson(3, 4))


def test_answers_before_the_label_prior_was_corrected():
    corrected = sure(("a", (0.6, 0.4, 0.0)), ("b", (0.2, 0.8, 0.0)), ("c", (0.1, 0.2, 0.7)))
    plain = [[0.9, 0.1, 0.0], [0.7, 0.3, 0.0], [0.5, 0.2, 0.3]]
    predictions = Predictions("x", corrected.assign(plain_probabilities=plain), list("abc"))
    values = metrics.plain(predictions)
    assert values["plain_accuracy"] == pytest.approx(1 / 3)
    assert (values["plain_low"], values["plain_high"]) == wilson(1, 3)
    assert values["plain_log_loss"] == pytest.approx(-np.log([0.9, 0.3, 0.3]).mean())
    assert metrics.classification(predictions)["accuracy"] == 1
    assert predictions.plain().plain().frame["predicted"].tolist() == ["a", "a", "a"]
    assert Predictions("x", corrected, list("abc")).plain().frame["predicted"].tolist() == ["a", "b", "c"]
    earlier = Predictions("x", corrected.drop(columns="plain_probabilities"), list("abc"))  # of an earlier revision
    assert earlier.plain() is earlier


def test_reliability_bins_have_equal_mass():
    confidence = np.linspace(0, 1, 31)
    bins = metrics.reliability(confidence, confidence > 0.5)
    assert [n for n, _, _ in bins] == [3] + [2] * 14
    assert [c for _, c, _ in bins] == sorted(c for _, c, _ in bins)
    assert sum(n * c for n, c, _ in bins) / 31 == pytest.approx(confidence.mean())


@pytest.mark.parametrize("labels", [["a"], ["a", "b"], ["a", "b", "c"]])
def test_few_labels(labels):
    predictions = table(*((label, label) for label in labels))
    certain = predictions.assign(probabilities=list(np.eye(len(labels))))
    values = posterior(certain, labels)
    assert values["top_3_accuracy"] == values["accuracy_at_50"] == 1
    assert values["log_loss"] == pytest.approx(0, abs=1e-9)
    assert values["ece"] == 0


def test_raw_answers_have_lenient_and_valid_and_structured_ones_have_probabilities(task):
    answers = table((task.labels[0], task.labels[0]), (task.labels[1], None))
    raw = metrics.of(Predictions("x", answers, task.labels), task, {"image_tokens": 16.0})
    assert raw["valid"] == 0.5
    assert {"lenient_accuracy", "macro_f1"} < set(raw)
    assert "log_loss" not in raw
    certain = answers.assign(predicted=list(task.labels[:2]), probabilities=list(np.eye(len(task.labels))[:2]))
    certain = Predictions("x", certain, task.labels)
    structured = metrics.of(certain, task, {})
    assert {"log_loss", "ece"} < set(structured)
    assert not {"valid", "lenient_accuracy", "calibrated_ece", "plain_accuracy"} & set(structured)
    assert "calibrated_ece" in metrics.of(certain, task, {"temperature": 2.0, "calibrated_labels": 2})


def test_no_answers_are_reported(task):
    empty = Predictions("final_eval", table(("Audi", "Audi")).iloc[:0], task.labels)
    with pytest.raises(
        InputError, match=r"predictions/final_eval/test\.parquet: has no answers; is data/test\.parquet empty"
    ):
        metrics.of(empty, task, {})


def test_lenient_accuracy_adds_labels_found_in_longer_texts():
    predictions = table(("a", "a"), ("a", None), ("b", None), ("b", "a"))
    predictions["text"] = ["a", "it is a", "it is a", "b or a"]
    task = SimpleNamespace(parse_leniently=lambda text: "a" if text == "it is a" else None)
    assert metrics.lenient(Predictions("x", predictions, ["a", "b"]), task) == {"lenient_accuracy": 0.5}
