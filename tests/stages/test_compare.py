import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stages import compare
from vlm.config.task import load_task

ROOT = Path(__file__).parents[2]
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
    """compared(probe_linear=55) writes 100 answers of each name, of which so many are right, and returns the line.

    With `plain`, structured_eval got so many right before its label prior was corrected.
    """
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs", "configs")
    shutil.copyfile(ROOT / "params.yaml", "params.yaml")
    labels = load_task("car_badges").labels

    def run(unavailable=(), plain=None, **right):
        for name in NAMES:
            predicted = [labels[i >= right.get(name, 50)] for i in range(100)]
            table = pd.DataFrame({"id": [str(i) for i in range(100)], "label": labels[0], "predicted": predicted})
            table = table.assign(probabilities=None, plain_probabilities=None)
            if name == "structured_eval" and plain is not None:
                before = np.eye(len(labels))[[int(i >= plain) for i in range(100)]]
                table = table.assign(probabilities=list(before), plain_probabilities=list(before))
            Path("predictions", name).mkdir(parents=True, exist_ok=True)
            table.to_parquet(f"predictions/{name}/test.parquet")
            values = {"unavailable": "no tower"} if name in unavailable else {}
            Path(f"predictions/{name}/test.json").write_text(json.dumps(values))
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


def test_what_correcting_the_label_prior_gains_comes_before_what_fine_tuning_gains(compared, tmp_path):
    line = compared(plain=50, structured_eval=70, final_eval=90, probe_linear=60, probe_nearest=60)
    assert line.startswith(
        "compare: correcting the label prior gains 20.0 points (12.0 to 28.0): 20 gained, 0 lost, McNemar p = 1.9e-06; "
        "fine-tuning gains 20.0 points (12.0 to 28.0): 20 gained, 0 lost, McNemar p = 1.9e-06; 30.0 points"
    )
    found = details(tmp_path)
    assert (found["prior_gain"], found["prior_gained"], found["prior_lost"]) == (0.2, 20, 0)
    assert (found["gain"], found["gained"]) == (0.2, 20)
    assert json.loads((tmp_path / "metrics/compare.json").read_text())["gain"] == 0.2


def test_without_a_correction_the_chart_has_no_bar_for_it(compared, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        compare.charts, "accuracy", lambda path, rows, baselines: drawn.append([name for name, *_ in rows])
    )
    line = compared()
    assert "label prior" not in line
    compared(plain=40)
    rest = ["fine-tuned,\nraw", "fine-tuned,\nstructured", "exported,\nllama.cpp"]
    assert drawn == [["raw", "structured", *rest], ["raw", "structured", "structured,\nprior corrected", *rest]]


def test_a_fine_tune_that_makes_it_worse_loses(compared):
    line = compared(structured_eval=60, final_eval=40, probe_linear=30, probe_nearest=30)
    assert line.startswith(
        "compare: fine-tuning loses 20.0 points (12.0 to 28.0): 0 gained, 20 lost, McNemar p = 1.9e-06"
    )
