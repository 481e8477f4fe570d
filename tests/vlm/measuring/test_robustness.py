import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from vlm.evaluation.intervals import wilson
from vlm.measuring import robustness
from vlm.robustness import answers as files

CONDITIONS = [("clean", 0), ("spatter", 5), ("spatter", 1), ("contrast", 5), ("contrast", 1)]


def table(right, ids=None):
    """Answers of which `right[model]`, (samples, conditions), says whether they are right."""
    rows = []
    for model, values in right.items():
        for i, row in enumerate(values):
            for condition, is_right in zip(CONDITIONS, row, strict=True):
                id_ = ids[i] if ids else f"test-{i:03d}"
                rows.append((model, *condition, id_, "BMW", "BMW" if is_right else "Ford"))
    columns = ["model", "corruption", "severity", "id", "label", "predicted"]
    return pd.DataFrame(rows, columns=columns).astype({"severity": "int8"})


def by_hand():
    """Four samples: base 3/4 clean; fine-tuned 4/4 clean."""
    return table(
        {
            "base": [[1, 1, 1, 1, 1], [1, 0, 1, 0, 1], [1, 0, 0, 0, 0], [0, 0, 1, 0, 0]],
            "fine-tuned": [[1, 1, 1, 1, 1], [1, 1, 1, 0, 1], [1, 0, 1, 0, 1], [1, 0, 1, 1, 1]],
        }
    )


def test_accuracy_begins_with_the_original_and_rises_with_severity_for_every_corruption():
    found = robustness.accuracy(by_hand())
    assert list(found) == ["model", "corruption", "severity", "accuracy", "low", "high"]
    base = found[found["model"] == "base"]
    assert list(base[["corruption", "severity", "accuracy"]].itertuples(index=False, name=None)) == [
        ("spatter", 0, 0.75),
        ("spatter", 1, 0.75),
        ("spatter", 5, 0.25),
        ("contrast", 0, 0.75),
        ("contrast", 1, 0.5),
        ("contrast", 5, 0.25),
    ]
    assert len(found) == 12
    assert (found.iloc[2]["low"], found.iloc[2]["high"]) == pytest.approx(wilson(1, 4), abs=1e-6)


def test_drops_by_hand():
    found = robustness.drops(by_hand())
    base, tuned = found["base"], found["fine-tuned"]
    assert found["samples"] == 4
    assert (base["clean"], base["corrupted"], base["drop"]) == pytest.approx((3 / 4, 7 / 16, 5 / 16))
    assert (tuned["clean"], tuned["corrupted"], tuned["drop"]) == pytest.approx((1, 12 / 16, 4 / 16))
    assert found["extra_drop"] == pytest.approx(-1 / 16)
    assert base["by_corruption"]["spatter"]["drop"] == pytest.approx(3 / 4 - 4 / 8)
    assert base["by_corruption"]["contrast"]["drop"] == pytest.approx(3 / 4 - 3 / 8)
    for values in (base, tuned, *base["by_corruption"].values()):
        assert values["drop_low"] <= values["drop"] <= values["drop_high"]
    assert found == robustness.drops(by_hand())


def test_the_interval_is_that_of_resampled_samples_with_all_their_answers():
    rng = np.random.default_rng(3)
    base = rng.random((200, 5)) < 0.7
    tuned = base | (rng.random((200, 5)) < 0.3)
    found = robustness.drops(table({"base": base, "fine-tuned": tuned}))
    drop, tuned_drop = (
        values[:, 0] - values[:, 1:].mean(axis=1) for values in (base.astype(float), tuned.astype(float))
    )
    drawn = rng.integers(0, 200, (10_000, 200))
    for name, values, of in (("drop", drop, found["base"]), ("extra_drop", tuned_drop - drop, found)):
        assert of[name] == pytest.approx(values.mean())
        expected = np.quantile(values[drawn].mean(axis=1), [0.025, 0.975])
        assert [of[f"{name}_low"], of[f"{name}_high"]] == pytest.approx(expected, abs=0.004)


def test_samples_that_all_lose_the_same_give_an_interval_without_width():
    found = robustness.drops(table({"base": [[1, 0, 0, 0, 0]], "fine-tuned": [[1, 1, 1, 1, 1]]}))
    assert (found["base"]["drop_low"], found["base"]["drop_high"]) == (1, 1)
    assert (found["extra_drop_low"], found["extra_drop_high"]) == (-1, -1)


def test_measure_writes_metrics_details_a_table_and_a_sheet(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    found = robustness.measure(by_hand(), data)
    plots = Path("plots/robustness")
    assert json.loads(Path("metrics/robustness.json").read_text()) == {"robust": 0.75}
    details = json.loads((plots / "details.json").read_text())
    assert details["fine-tuned"]["drop"] == found["fine-tuned"]["drop"] == 0.25
    assert len(pd.read_csv(plots / "accuracy.csv")) == 12
    sheet = (plots / "samples.png").read_bytes()
    image = Image.open(plots / "samples.png").convert("RGB")
    # Two samples; two rows of corruptions; for each sample the original and two severities
    assert image.height == robustness._HEAD + 2 * robustness._CELL
    assert image.width == robustness._NAMES + 2 * (3 * robustness._CELL + robustness._GAP)
    robustness.measure(by_hand(), data)
    assert (plots / "samples.png").read_bytes() == sheet


def test_without_answers_the_files_say_so(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    robustness.measure(by_hand(), data)
    files.write(Path("answers.parquet"), [])
    assert robustness.measure(pd.read_parquet("answers.parquet"), data) == {}
    plots = Path("plots/robustness")
    assert (plots / "accuracy.csv").read_text() == "model,corruption,severity,accuracy,low,high\n"
    assert (
        json.loads((plots / "details.json").read_text())
        == json.loads(Path("metrics/robustness.json").read_text())
        == {}
    )
    assert not (plots / "samples.png").exists()
