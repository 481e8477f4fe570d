"""What a report is made of, and what it refuses; tests/vlm/report/test_browser.py looks at the page in a browser."""

import json
import re
import shutil

import pandas as pd
import pytest

from tests.vlm.report import invented
from vlm.config.errors import InputError
from vlm.config.params import load_params
from vlm.report import page, suspects


@pytest.fixture
def folder(tmp_path, monkeypatch):
    folder = invented.repository(tmp_path / "repository", samples=12)
    monkeypatch.chdir(folder)
    return folder


def write(folder):
    return page.write(folder / "reports", load_params(), lambda event: None)


def data_of(folder):
    """What the page's scripts read."""
    html = (folder / "reports/index.html").read_text()
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_equal_results_give_equal_reports(folder):
    invented.write_results(folder)
    written = write(folder)
    first = files(folder / "reports")
    assert str(written).startswith("12 samples, 5 measurements, ")
    write(folder)
    assert files(folder / "reports") == first
    assert sorted(path.name for path in folder.glob(".report*")) == []


def test_one_evaluation_is_enough(folder):
    for path in (folder / "predictions").iterdir():
        if path.name != "structured_eval":
            shutil.rmtree(path)
    assert str(write(folder)).startswith("12 samples, 1 measurement, ")
    data = data_of(folder)
    assert data["lead"] == "structured_eval"
    assert [data[key] for key in ("tuning", "against", "training", "suspects")] == [None] * 4


def test_answers_before_the_label_prior_was_corrected_are_a_model_of_their_own(folder):
    path = folder / "predictions/structured_eval/test.parquet"
    frame = pd.read_parquet(path)
    # The model's own probabilities are highest for the first label, whatever it sees.
    frame["plain_probabilities"] = [[0.8, *[0.2 / (len(p) - 1)] * (len(p) - 1)] for p in frame["probabilities"]]
    frame.to_parquet(path)
    assert str(write(folder)).startswith("12 samples, 6 measurements, ")
    models = data_of(folder)["models"]
    titles = {model["name"]: model["title"] for model in models}
    assert [titles[name] for name in ("structured_plain", "structured_eval")] == [
        "Structured",
        "Structured, prior corrected",
    ]
    assert [model["predicted"] for model in models if model["name"] == "structured_plain"] == [[0] * 12]
    assert "Correcting the label prior " in (folder / "reports/index.html").read_text()


def test_the_data_of_a_model(folder):
    write(folder)
    models = {model["name"]: model for model in data_of(folder)["models"]}
    raw, tuned = models["baseline_eval"], models["final_eval"]
    assert raw["predicted"] == [-1] * 12
    assert raw["texts"][0] == "I see <b>Audi</b>.\nIt is sample 0."
    assert raw["lenient"] == 1
    assert tuned["texts"] is None  # they are the answers as JSON, which says nothing new
    assert all(top[0] == answer for top, answer in zip(tuned["top"], tuned["predicted"], strict=True))
    assert [top[1] for top in tuned["top"]] == pytest.approx(tuned["confidence"], abs=6e-5)
    # as precise as the thresholds that they are compared with
    best = [max(p) for p in pd.read_parquet("predictions/final_eval/test.parquet")["probabilities"]]
    assert tuned["confidence"] == [round(float(p), 6) for p in best]


def test_a_folder_with_something_else_is_left_alone(folder):
    (folder / "reports").mkdir()
    (folder / "reports/thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="reports: exists and is not a report; name a new folder"):
        write(folder)
    assert files(folder / "reports").keys() == {*map(type(folder), ["thesis.tex"])}


def test_nothing_to_report(folder):
    shutil.rmtree(folder / "predictions")
    with pytest.raises(InputError, match="predictions/: there are none to report; `dvc repro` makes them"):
        write(folder)


def test_predictions_of_other_samples(folder):
    invented.write_predictions(folder, "final_eval", invented.LABELS, 11, invented.np.random.default_rng(0))
    with pytest.raises(
        InputError, match=r"predictions/final_eval/test.parquet: is of other samples than data/test.parquet"
    ):
        write(folder)
    assert not (folder / "reports").exists()


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("test/3.jpg", "test/99.jpg", "'test/99.jpg' is not in data/test.parquet; `dvc repro audit` looks again"),
        ("suggestion", "advice", "has no column 'suggestion'"),
    ],
)
def test_suspects_that_do_not_fit(folder, old, new, message):
    invented.write(folder, "plots/audit/suspects.csv", invented.SUSPECTS.replace(old, new))
    with pytest.raises(InputError, match=f"suspects.csv: {message}"):
        write(folder)


def test_parameters_are_those_of_dvc_lock(folder):
    lock = {"stages": {"finetune": {"params": {
        "params.yaml": {"finetune": {"epochs": 7, "lora": {"r": 8}}, "model": "tiny"},
        "configs/models/tiny.yaml": {"id": "models/other"},
    }}}}  # fmt: skip
    invented.write(folder, "dvc.lock", json.dumps(lock))
    write(folder)
    html = (folder / "reports/index.html").read_text()
    assert "<code>finetune.epochs</code></th><td><code>7</code>" in html
    assert "<dt>Repository</dt><dd>models/other</dd>" in html


def lock(**models):
    """A dvc.lock in which stages ran with these models."""
    return json.dumps({"stages": {
        stage: {"params": {"params.yaml": {"model": model, "task": "invented", "finetune": {"epochs": 7}}}}
        for stage, model in models.items()
    }})  # fmt: skip


def test_predictions_of_another_model_are_left_out(folder):
    """DVC leaves the outputs of stages that it did not run, and their ids are the same."""
    invented.write_results(folder)
    invented.write(folder, "metrics/runtime/final_eval.json", '{"samples": 60, "seconds": 1234.5}')
    stages = {"finetune": "450M", "final_eval": "450M", "robustness": "450M", "probe": "450M"}
    invented.write(folder, "dvc.lock", lock(structured_eval="tiny", **stages))
    assert str(write(folder)).startswith("12 samples, 2 measurements, ")
    data = data_of(folder)
    assert [model["name"] for model in data["models"]] == ["baseline_eval", "structured_eval"]
    assert (data["tuning"], data["training"], data["robustness"]) == (None, None, [])
    html = (folder / "reports/index.html").read_text()
    assert (
        "Left out, because dvc.lock has them with another model or task than params.yaml: "
        "Majority class; Linear probe; Fine-tuned, structured." in html
    )
    assert "1,234.5" not in html
    invented.write(folder, "dvc.lock", lock(structured_eval="tiny", final_eval="tiny", probe="tiny"))
    assert str(write(folder)).startswith("12 samples, 5 measurements, ")
    assert "Left out" not in (folder / "reports/index.html").read_text()
    invented.write(folder, "dvc.lock", lock(structured_eval="3B", baseline_eval="3B", final_eval="3B", probe="3B"))
    with pytest.raises(InputError, match=r"predictions/: all are of another model or task than params"):
        write(folder)


def test_predictions_of_another_task_are_left_out_before_their_labels_matter(folder):
    invented.write_predictions(folder, "final_eval", ["other", "labels"], 12, invented.np.random.default_rng(0))
    invented.write(folder, "dvc.lock", lock(final_eval="tiny").replace('"invented"', '"car_maker"'))
    assert str(write(folder)).startswith("12 samples, 4 measurements, ")


def test_thresholds_are_those_of_the_predictions(folder):
    write(folder)
    assert data_of(folder)["thresholds"] == {}
    for least in (0.5, 0.75):
        invented.write_validation(folder, least=least)
        invented.write(folder, "plots/final_eval/details.json", '{"thresholds": [{"target": 0.95, "threshold": 0.6}]}')
        write(folder)
        thresholds = data_of(folder)["thresholds"]
        assert [*thresholds] == ["final_eval"]
        confidence = pd.read_parquet("predictions/final_eval/test.parquet")["probabilities"].map(max)
        reached, unreached = thresholds["final_eval"]
        assert (reached["target"], reached["threshold"]) == (0.95, least)
        assert reached["coverage"] == pytest.approx((confidence >= least).mean())
        assert (unreached["target"], unreached["threshold"], unreached["accuracy"]) == (0.99, None, None)


def test_findings_that_were_decided_about(folder):
    decided = invented.SUSPECTS.replace("97 %: <b>look</b>.,", "97 %: <b>look</b>.,relabelled to BMW")
    invented.write(folder, "plots/audit/suspects.csv", decided)
    write(folder)
    found = data_of(folder)["suspects"]
    assert [row["decided"] for row in found["rows"]] == ["relabelled to BMW", "", "", ""]
    assert (found["total"], found["decided"]) == (4, 1)
    html = (folder / "reports/index.html").read_text()
    assert "first; 1 already decided." in html
    assert 'Suspects <span class="count">3</span>' in html


def test_ticks_are_kept_for_the_findings_that_they_are_about(folder):
    keys = []
    for suspicious in (invented.SUSPECTS, invented.SUSPECTS, invented.SUSPECTS.replace("0.97", "0.96")):
        invented.write(folder, "plots/audit/suspects.csv", suspicious)
        write(folder)
        keys.append(data_of(folder)["suspects"]["key"])
    assert keys[0] == keys[1] != keys[2]


def test_all_findings_about_test_samples_are_in_the_page(folder, monkeypatch):
    monkeypatch.setattr(suspects, "FIRST", 1)
    invented.write_results(folder)
    write(folder)
    found = data_of(folder)["suspects"]
    assert [row["rank"] for row in found["rows"]] == [1, 3]
    assert found["total"] == 4
    html = (folder / "reports/index.html").read_text()
    assert "4 findings of the audit" in html
    assert "the first 1 and all of the test split; the others are in plots/audit/suspects.csv" in html


@pytest.mark.parametrize("speed, shown", [(0.4, "0.4"), (0.01234, "0.0123"), (10.9, "11"), (4321.0, "4,321")])
def test_slow_stages_have_a_speed(folder, speed, shown):
    invented.write(folder, "metrics/runtime/finetune.json", json.dumps({"seconds": 5.5, "samples_per_second": speed}))
    write(folder)
    assert f'<td class="number">{shown}</td>' in (folder / "reports/index.html").read_text()


def test_the_page_asks_for_nothing_but_its_own_pictures(folder):
    write(folder)
    html = (folder / "reports/index.html").read_text()
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=(?!\"data:)", html)
    assert "default-src 'none'" in html
