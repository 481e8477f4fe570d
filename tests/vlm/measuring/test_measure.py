import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from stages import measure as measure_stage
from tests.vlm.measuring.splits import LABELS, predictions_for
from vlm.config.errors import InputError
from vlm.config.params import load_params
from vlm.measuring.measure import measure

ROOT = Path(__file__).parents[3]


@pytest.fixture
def place(tmp_path, monkeypatch, data):
    """A folder with the repository's configuration, a test split, and no predictions."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    shutil.copytree(ROOT / "models/tiny", tmp_path / "models/tiny")
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    (tmp_path / "data").mkdir()
    shutil.copyfile(data, tmp_path / "data/test.parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def answered(name, frame, labels, certain=None, split="test", **found):
    """Writes predictions; `certain` is the confidence of each, None for raw answers."""
    if certain is not None:
        rest = (1 - np.array(certain))[:, None] / (len(labels) - 1)
        p = np.repeat(rest, len(labels), axis=1)
        p[np.arange(len(frame)), [labels.index(label) for label in frame["predicted"]]] = certain
        frame = frame.assign(probabilities=list(p))
    Path("predictions", name).mkdir(parents=True, exist_ok=True)
    frame.to_parquet(f"predictions/{name}/{split}.parquet")
    Path(f"predictions/{name}/{split}.json").write_text(json.dumps(found))


def test_raw_answers(place, predictions):
    answered("baseline_eval", predictions, load_params().task.labels, image_tokens=16.0)
    values = measure("baseline_eval", load_params().task)
    assert json.loads(Path("metrics/baseline_eval.json").read_text()) == {"accuracy": pytest.approx(1 / 3, abs=1e-6)}
    details = json.loads(Path("plots/baseline_eval/details.json").read_text())
    assert details["image_tokens"] == 16
    assert details["valid"] == pytest.approx(values["valid"], abs=1e-6)
    assert "thresholds" not in details
    assert {path.name for path in Path("plots/baseline_eval").iterdir()} == {
        "details.json", "mistakes.png", "confusion.csv", "top_confusions.csv", "per_class.csv", "reliability.csv", "risk_coverage.csv",
    }  # fmt: skip


def test_a_probe_without_answers_has_no_metrics(place, predictions):
    answered("probe_linear", predictions.assign(predicted=None), load_params().task.labels, unavailable="no tower")
    assert measure("probe_linear", load_params().task) == {"unavailable": "no tower"}
    assert json.loads(Path("metrics/probe_linear.json").read_text()) == {}
    assert [path.name for path in Path("plots/probe_linear").iterdir()] == ["details.json"]


def test_thresholds_are_chosen_on_validation_if_it_was_answered(place, data):
    task = load_params().task
    frame = predictions_for(data, lambda i, label: label if i % 4 else LABELS[LABELS.index(label) - 1])
    certain = [0.9 if i % 4 else 0.4 for i in range(len(frame))]
    answered("final_eval", frame, task.labels, certain)
    assert "thresholds" not in measure("final_eval", task)
    answered("final_eval", frame, task.labels, certain, split="validation")
    values = measure("final_eval", task)
    details = json.loads(Path("plots/final_eval/details.json").read_text())
    assert [found["target"] for found in details["thresholds"]] == [0.95, 0.99]
    lower, higher = details["thresholds"]
    assert (lower["threshold"], lower["coverage"], lower["accuracy"]) == (0.9, 0.75, 1.0)
    assert higher == dict.fromkeys(higher) | {"target": 0.99}  # 90 answers of 90 right are too few for it
    assert values["thresholds"][0]["low"] == pytest.approx(lower["low"], abs=1e-6)


def test_answers_to_validation_without_probabilities_give_no_thresholds(place, data):
    """As with structured_eval.engine: outlines, or without any pictures for validation."""
    task = load_params().task
    right = predictions_for(data, lambda i, label: label)
    answered("structured_eval", right, task.labels, [0.9] * len(right))
    answered("structured_eval", right, task.labels, split="validation")
    assert "thresholds" not in measure("structured_eval", task)
    answered("structured_eval", right.iloc[:0], task.labels, split="validation")
    assert "thresholds" not in measure("structured_eval", task)


def test_nothing_is_written_if_the_predictions_are_for_another_task(place, predictions):
    answered("baseline_eval", predictions.assign(predicted="Wartburg"), ())
    with pytest.raises(InputError, match="has the label 'Wartburg', which is not one of the task in"):
        measure("baseline_eval", load_params().task)
    assert not Path("plots").exists()
    assert not Path("metrics").exists()


@pytest.fixture
def of_prior(place, data):
    """Answers of structured_eval: 90 of 120 right with the label prior corrected, 30 before."""
    labels = load_params().task.labels
    frame = predictions_for(data, lambda i, label: label if i % 4 else LABELS[LABELS.index(label) - 1])

    def certain(frame, right):
        p = np.full((len(frame), len(labels)), 0.3 / (len(labels) - 1))
        p[np.arange(len(frame)), [labels.index(label) for label in right]] = 0.7
        return list(p)

    swapped = [label if i % 4 == 0 else LABELS[LABELS.index(label) - 1] for i, label in enumerate(frame["label"])]
    frame = frame.assign(probabilities=certain(frame, frame["predicted"]), plain_probabilities=certain(frame, swapped))
    prior = {"method": "batch", "samples": 256, "strength": 1.0, "probabilities": [1 / len(labels)] * len(labels)}

    def write(**found):
        Path("predictions/structured_eval").mkdir(parents=True)
        frame.to_parquet("predictions/structured_eval/test.parquet")
        Path("predictions/structured_eval/test.json").write_text(json.dumps({"prior": prior} | found))

    return write


def test_answers_with_the_label_prior_corrected_have_the_accuracy_before_beside_it(of_prior, capsys):
    of_prior()
    measure_stage.main("structured_eval")
    assert json.loads(Path("metrics/structured_eval.json").read_text()) == {"accuracy": 0.75, "plain_accuracy": 0.25}
    assert capsys.readouterr().out == (
        "structured_eval: 75.0 % of 120 right (66.6 to 81.9), 25.0 % before the label prior was corrected\n"
    )
    details = json.loads(Path("plots/structured_eval/details.json").read_text())
    assert details["prior"]["method"] == "batch"
    assert details["plain_log_loss"] > details["log_loss"]
    assert details["plain_low"] < 0.25 < details["plain_high"]


def test_without_a_prior_both_accuracies_are_the_same(of_prior, data):
    labels = load_params().task.labels
    right = predictions_for(data, lambda i, label: label)
    answered("final_eval", right, labels, [0.9] * len(right))
    measure("final_eval", load_params().task)
    assert json.loads(Path("metrics/final_eval.json").read_text()) == {"accuracy": 1.0, "plain_accuracy": 1.0}


def test_the_line_says_what_a_bias_fitted_on_labels_gives(of_prior, capsys):
    labels = load_params().task.labels
    of_prior(temperature=1.0, bias=[0.0] * len(labels), penalty=1.0, calibrated_labels=160, outlines_agreement=0.5)
    measure_stage.main("structured_eval")
    said = capsys.readouterr()
    assert said.out.endswith("; with a bias fitted on 160 labelled validation samples: 75.0 %\n")
    assert said.err == ""


def test_an_agreement_with_outlines_near_zero_is_a_warning(of_prior, capsys):
    of_prior(outlines_agreement=0.03)
    measure_stage.main("structured_eval")
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith(
        "warning: structured_eval: token by token, Outlines finds the most probable label for 3 %"
    )
