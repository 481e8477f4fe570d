import json

import pandas as pd
import pytest

from stages import compare

NAMES = [
    "majority",
    "probe_nearest",
    "probe_linear",
    "baseline_eval",
    "structured_eval",
    "final_eval_raw",
    "final_eval",
    "edge_eval",
]


@pytest.fixture
def compared(tmp_path, monkeypatch, capsys):
    """compared(probe_linear=55) writes 100 answers of each name, of which so many are right, and returns the line."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "predictions").mkdir()

    def run(unavailable=(), **right):
        for name in NAMES:
            predicted = ["a" if i < right.get(name, 50) else "b" for i in range(100)]
            table = pd.DataFrame({"id": [str(i) for i in range(100)], "label": "a", "predicted": predicted})
            table.to_parquet(tmp_path / "predictions" / f"{name}.parquet")
            values = {"unavailable": "no tower"} if name in unavailable else {}
            (tmp_path / "predictions" / f"{name}.json").write_text(json.dumps(values))
        compare.main()
        return capsys.readouterr().out.strip()

    return run


def details(tmp_path):
    return json.loads((tmp_path / "plots/compare/details.json").read_text())


def test_the_line_ends_with_what_fine_tuning_gains_over_the_probe(compared, tmp_path):
    line = compared(structured_eval=50, final_eval=90, probe_linear=70)
    assert line == (
        "compare: fine-tuning gains 40.0 points (30.0 to 50.0): 40 gained, 0 lost, McNemar p = 1.8e-12; 20.0 points "
        "(12.0 to 28.0) more than a linear probe on frozen vision features, McNemar p = 1.9e-06"
    )
    assert json.loads((tmp_path / "metrics/compare.json").read_text()) == {
        "gain": 0.4,
        "gain_low": 0.3,
        "gain_high": 0.5,
    }
    found = details(tmp_path)
    assert (found["gained"], found["over_probe_gained"], found["over_probe_gain"]) == (40, 20, 0.2)
    assert found["over_nearest_gain"] == 0.4
    assert (tmp_path / "plots/compare/accuracy.png").exists()


def test_a_probe_that_beats_the_fine_tuned_model_comes_first(compared, tmp_path):
    line = compared(structured_eval=50, final_eval=70, probe_linear=90)
    assert line.startswith(
        "compare: the fine-tuned model is 20.0 points (12.0 to 28.0) worse than a linear probe on frozen vision features, "
        "McNemar p = 1.9e-06; fine-tuning gains 20.0 points"
    )
    assert details(tmp_path)["over_probe_gain"] == -0.2


def test_the_better_of_the_two_probes_is_named(compared, tmp_path):
    line = compared(structured_eval=50, final_eval=70, probe_linear=80, probe_nearest=90)
    assert line.startswith("compare: the fine-tuned model is 20.0 points (12.0 to 28.0) worse than nearest neighbours")
    assert details(tmp_path)["over_probe_gain"] == -0.1


def test_so_does_a_probe_that_cannot_be_told_from_the_fine_tuned_model(compared):
    line = compared(structured_eval=50, final_eval=72, probe_linear=70)
    assert line.startswith(
        "compare: the fine-tuned model cannot be told apart from a linear probe on frozen vision features: a "
        "difference of 2.0 points (0.0 to 5.0), McNemar p = 0.5; fine-tuning gains 22.0 points"
    )


def test_without_vision_features_nothing_is_said_about_a_probe(compared, tmp_path):
    line = compared(unavailable=("probe_nearest", "probe_linear"), final_eval=90, probe_linear=0)
    assert "probe" not in line
    assert not [name for name in details(tmp_path) if "over" in name]
