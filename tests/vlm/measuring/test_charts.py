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


def test_baselines_stand_apart_from_the_stages_and_have_another_colour(tmp_path):
    rows = [("raw", 0.1, 0.05, 0.15), ("fine-tuned", 0.9, 0.85, 0.95)]
    charts.accuracy(tmp_path / "a.png", rows, [("majority", 0.3, 0.25, 0.35), ("probe", 0.8, 0.75, 0.85)])
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    baselines, stages = (
        np.flatnonzero((abs(pixels - colour) < 3).all(axis=2).sum(axis=0) > 20)
        for colour in ((0xB4, 0xBC, 0xC6), (0x3B, 0x75, 0xAF))
    )
    assert baselines.max() < stages.min()
    between_baselines = np.diff(baselines).max()
    assert stages.min() - baselines.max() > 1.2 * between_baselines > 0


def test_the_dashed_line_continues_the_best_baseline(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(charts, "rasterised", lambda figure: figure)
    monkeypatch.setattr(charts, "save", lambda figure, path: figures.append(figure))
    baselines = [("majority", 0.3, 0.25, 0.35), ("nearest", 0.75, 0.7, 0.8), ("linear", 0.5, 0.45, 0.55)]
    charts.accuracy(tmp_path / "a.png", [("raw", 0.1, 0.05, 0.15)], baselines)
    [dashed] = figures[0].axes[0].lines
    assert dashed.get_xdata()[0] == 1
    assert list(dashed.get_ydata()) == [75, 75]


def test_the_learning_curve_is_the_same_file_every_time(tmp_path):
    curves = {
        "structured": [(100, 0.7, 0.65, 0.75), (1600, 0.7, 0.65, 0.75)],
        "fine-tuned": [(100, 0.5, 0.45, 0.55), (1600, 0.9, 0.88, 0.92)],
    }
    for name in ("a.png", "b.png"):
        charts.learning_curve(tmp_path / name, curves)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
