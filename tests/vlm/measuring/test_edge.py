import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vlm.edge import answers
from vlm.measuring import edge

ROOT = Path(__file__).parents[3]
LABELS = ["a", "b", "c"]


@pytest.fixture
def write(tmp_path, monkeypatch):
    """write("final_eval", [[0.7, 0.2, 0.1], ...]) writes predictions; the truth is a, b, c, a, b, c, ..."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs", "configs")
    Path("predictions/edge_eval").mkdir(parents=True)
    answers.write_sweep(Path("predictions/edge_eval/sweep.parquet"), [])
    text = (ROOT / "params.yaml").read_text().replace("task: car_badges", "task: letters")
    Path("params.yaml").write_text(text)
    Path("configs/tasks/letters.yaml").write_text(
        "source: {folder: letters}\nlabels: [a, b, c]\nprompt: {system: null, user: Which?}\n"
    )

    def write(name, probabilities, notes=None, ids=None):
        frame = pd.DataFrame(
            {
                "id": [f"s{i}" for i in range(len(probabilities))] if ids is None else ids,
                "label": [LABELS[i % 3] for i in range(len(probabilities))],
                "text": "",
                "predicted": [LABELS[int(np.argmax(p))] for p in probabilities],
                "probabilities": probabilities,
            }
        )
        Path("predictions", name).mkdir(exist_ok=True)
        frame.to_parquet(f"predictions/{name}/test.parquet")
        Path(f"predictions/{name}/test.json").write_text(json.dumps(notes or {}))

    return write


FINAL = [[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.1, 0.2, 0.7], [0.9, 0.05, 0.05]]  # right, wrong, right, right
NOTES = {"types": "Q4_0+Q8_0", "bytes": 2_170_000, "greedy_agreement": 0.75}


def test_changed_labels_are_told_apart_by_who_is_right(write, tmp_path):
    write("final_eval", FINAL)
    # gains the second, loses the third, and changes the fourth sample's probabilities alone
    write("edge_eval", [FINAL[0], [0.4, 0.5, 0.1], [0.1, 0.8, 0.1], [0.7, 0.15, 0.15]], NOTES)
    table = edge.measure()
    row = table.iloc[0]
    assert (row["types"], row["megabytes"], row["samples"]) == ("Q4_0+Q8_0", 2.17, 4)
    assert (row["changed"], row["gained"], row["lost"], row["accuracy"]) == (2, 1, 1, 0.75)
    assert row["largest_change"] == pytest.approx(0.6)
    assert row["mean_change"] == pytest.approx((0 + 0.1 + 0.6 + 0.2) / 4)
    assert json.loads(Path("metrics/edge.json").read_text()) == {"changed": 2}
    details = json.loads(Path("plots/edge/details.json").read_text())
    assert (details["greedy_agreement"], details["lost"]) == (0.75, 1)


def test_the_sweep_follows_and_some_samples_are_enough(write):
    write("final_eval", FINAL)
    write("edge_eval", FINAL[:3], NOTES)
    write("swept", FINAL, {"types": "F16+F16", "bytes": 5_000_000})
    for file in Path("predictions/swept").iterdir():
        file.rename(file.with_stem("edge"))
    answers.write_sweep(Path("predictions/edge_eval/sweep.parquet"), [Path("predictions/swept")])
    table = edge.measure()
    assert table["types"].tolist() == ["Q4_0+Q8_0", "F16+F16"]
    assert table["samples"].tolist() == [3, 4]
    assert table["changed"].tolist() == [0, 0]
    assert pd.read_csv("plots/edge/quantization.csv").shape == (2, 11)


def test_without_probabilities_in_final_eval_only_labels_are_compared(write):
    write("final_eval", FINAL)
    frame = pd.read_parquet("predictions/final_eval/test.parquet").assign(probabilities=None)
    frame.to_parquet("predictions/final_eval/test.parquet")
    write("edge_eval", FINAL, NOTES)
    row = edge.measure().iloc[0]
    assert row["changed"] == 0 and np.isnan(row["largest_change"])
    assert "largest_change" not in json.loads(Path("plots/edge/details.json").read_text())


def test_nothing_exported_is_nothing_measured(write):
    write("final_eval", FINAL)
    write("edge_eval", FINAL[:0], {"unavailable": "no such thing"})
    assert edge.measure().empty
    assert json.loads(Path("metrics/edge.json").read_text()) == {}
    assert json.loads(Path("plots/edge/details.json").read_text()) == {"unavailable": "no such thing"}
