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


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": 1}, [1], None, np.float32(1)])
def test_write_refuses_what_is_not_flat_and_finite(tmp_path, value):
    path = tmp_path / "x.json"
    path.write_text("as it was")
    with pytest.raises(ValueError, match=r"x\.json: accuracy: .* is not a finite number or text"):
        json_files.write(path, {"samples": 1, "accuracy": value})
    assert path.read_text() == "as it was"
