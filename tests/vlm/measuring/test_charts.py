from itertools import pairwise

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
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


def learning_curves(*ends: float) -> dict[str, list[charts.Labelled]]:
    """A method without labels, and others that begin at 50 % with 50 labels and end at `ends` with 200."""
    curves = {"structured": [charts.Labelled(0, [0.7], 0.65, 0.75)]}
    for number, end in enumerate(ends):
        points = [
            charts.Labelled(50, [0.49, 0.51], 0.45, 0.55),
            charts.Labelled(200, [end - 0.01, end + 0.01], 0.4, 0.9),
        ]
        curves[f"method {number}"] = points
    return curves


def test_the_learning_curve_is_the_same_file_every_time(tmp_path):
    for name in ("a.png", "b.png"):
        charts.learning_curve(tmp_path / name, learning_curves(0.8, 0.9))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_the_names_of_curves_that_end_together_do_not_overlap(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(charts, "save", lambda image, path: None)
    monkeypatch.setattr(charts, "rasterised", figures.append)
    charts.learning_curve(tmp_path / "a.png", learning_curves(0.7, 0.705, 0.95, 0.71, 0.7))
    [figure] = figures
    FigureCanvasAgg(figure).draw()  # lays it out
    texts = figure.axes[0].texts
    assert len(texts) == 6
    boxes = sorted((text.get_window_extent() for text in texts), key=lambda box: box.y0)
    assert all(below.y1 <= above.y0 for below, above in pairwise(boxes))
    assert max(box.x1 for box in boxes) <= figure.bbox.x1
    named = {text.get_text(): text.xy[1] for text in texts}
    assert named["method 2  95.0 %"] == pytest.approx(95)  # far from the others, so beside its end


def test_a_method_without_labels_is_a_level_line_over_the_whole_chart(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(charts, "save", lambda image, path: None)
    monkeypatch.setattr(charts, "rasterised", figures.append)
    charts.learning_curve(tmp_path / "a.png", learning_curves(0.8))
    drawn = [line for line in figures[0].axes[0].lines if line.get_linestyle() != "None" and line.get_linewidth() > 1]
    level, curve = drawn
    assert list(level.get_ydata()) == [70, 70]
    assert level.get_xdata()[0] < curve.get_xdata()[0]
    assert level.get_xdata()[1] > curve.get_xdata()[1]
    assert list(curve.get_ydata()) == pytest.approx([50, 80])
