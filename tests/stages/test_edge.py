import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from stages import edge_eval, export, measure_edge
from vlm.config.params import load_params
from vlm.data import dataset, predictions

ROOT = Path(__file__).parents[2]


@pytest.fixture
def work(tmp_path, monkeypatch, make_split):
    """A working directory with a model that llama.cpp cannot run, for which there are predictions."""
    split = make_split("test", 4)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs", "configs")
    text = (ROOT / "params.yaml").read_text().replace("model: tiny", "model: other")
    Path("params.yaml").write_text(text)
    Path("configs/models/other.yaml").write_text("id: models/other\nrevision: null\noptions: {}\n")
    Path("models/other").mkdir(parents=True)
    Path("models/other/config.json").write_text(json.dumps({"model_type": "smolvlm"}))
    Path("data").mkdir()
    shutil.copyfile(split, "data/test.parquet")
    task = load_params().task
    texts = [task.answer(label) for label in dataset.ids_and_labels("data/test.parquet")[1]]
    predictions.write(
        Path("predictions/final_eval/test.parquet"), task, "data/test.parquet", texts, [None] * len(texts)
    )
    return tmp_path


def test_a_model_that_llama_cpp_does_not_run_leaves_empty_outputs_and_one_line_a_stage(work, capsys):
    for stage in (export, edge_eval, measure_edge):
        stage.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("export: nothing exported: ") and "'smolvlm'" in lines[0]
    assert lines[1].startswith("edge_eval: nothing to measure: ") and "'smolvlm'" in lines[1]
    assert lines[2] == "measure_edge: nothing to measure; nothing was exported"
    assert len(pd.read_parquet("predictions/edge_eval/test.parquet")) == 0
    assert "unavailable" in json.loads(Path("predictions/edge_eval/test.json").read_text())
    assert [path.name for path in Path("models/edge").iterdir()] == ["unavailable.json"]
    assert len(pd.read_parquet("predictions/edge_eval/sweep.parquet")) == 0
    assert json.loads(Path("metrics/edge.json").read_text()) == {}
