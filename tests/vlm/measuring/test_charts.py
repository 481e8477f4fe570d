import numpy as np
import pytest
from PIL import Image

from vlm.measuring import charts


def test_the_chart_of_accuracies(tmp_path):
    rows = [("raw", 0.0, 0.0, 0.004), ("structured", 0.612, 0.581, 0.642), ("fine-tuned,\nstructured", 1.0, 0.996, 1.0)]
    for name in ("a.png", "b.png"):
        charts.accuracy(tmp_path / name, rows)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").stat().st_size < 100_000
    # The bar of 1 reaches the top of the axis, and that of 0 has no height.
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    blue = (abs(pixels - (0x3B, 0x75, 0xAF)) < 3).all(axis=2)
    columns = np.flatnonzero(blue.any(axis=0))
    heights = [blue[:, columns[0]].sum(), blue[:, columns[-1]].sum()]
    assert heights[0] / heights[1] == pytest.approx(0.612, abs=0.005)
