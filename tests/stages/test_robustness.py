import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from stages import measure_robustness, robustness

ROOT = Path(__file__).parents[2]


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A working directory with the settings of the repository: robustness is switched off."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_switched_off_the_stages_leave_empty_outputs_and_say_how_to_switch_it_on(work, capsys):
    robustness.main()
    measure_robustness.main()
    assert capsys.readouterr().out.splitlines() == [
        "robustness: switched off; `dvc exp run -S robustness.enabled=true` switches it on",
        "measure_robustness: nothing to measure; robustness is switched off",
    ]
    assert len(pd.read_parquet(work / "predictions/robustness/test.parquet")) == 0
    assert json.loads((work / "metrics/runtime/robustness.json").read_text())["samples"] == 0
    assert json.loads((work / "metrics/robustness.json").read_text()) == {}
    assert {path.name for path in (work / "plots/robustness").iterdir()} == {"accuracy.csv", "details.json"}
