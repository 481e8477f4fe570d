import json

import numpy as np
import pytest

from vlm.data import json_files


def test_write(tmp_path):
    path = tmp_path / "metrics" / "x.json"
    json_files.write(path, {"samples": 1000, "accuracy": 2 / 3, "mcnemar_p": 1.23456789e-12, "seconds": 12345678.9})
    assert path.read_text() == (
        '{\n  "samples": 1000,\n  "accuracy": 0.666667,\n  "mcnemar_p": 1.23457e-12,\n  "seconds": 12345700.0\n}\n'
    )
    json_files.write(path, {"accuracy": 0.5})
    assert json.loads(path.read_text()) == {"accuracy": 0.5}
    assert list(path.parent.iterdir()) == [path]


def test_lists_and_mappings_are_rounded_too(tmp_path):
    json_files.write(tmp_path / "x.json", {"thresholds": [{"target": 0.95, "threshold": None, "low": 2 / 3}]})
    assert json_files.read(tmp_path / "x.json") == {
        "thresholds": [{"target": 0.95, "threshold": None, "low": 0.666667}]
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32(1), {1, 2}])
@pytest.mark.parametrize("nested", [False, True])
def test_write_refuses_what_is_not_json(tmp_path, value, nested):
    path = tmp_path / "x.json"
    path.write_text("as it was")
    place = r"accuracy\.0\.low" if nested else "accuracy"
    with pytest.raises(ValueError, match=rf"x\.json: {place}: .* is not a finite number, text or null"):
        json_files.write(path, {"samples": 1, "accuracy": [{"low": value}] if nested else value})
    assert path.read_text() == "as it was"
