"""Charts with intervals: the accuracy of every stage beside the baselines, and accuracy against training rows."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from vlm.measuring.pictures import BLUE, DARK, DPI, GREY, rasterised, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PALE = "#b4bcc6"  # of the baselines
_GRID = "#e4e4e4"
_GAP = 0.5  # between the baselines and the stages, in bars
_BELOW = 44  # points from the axis to the line above a group's name
_LINE = 6  # percentage points that a line of text takes beside a curve
_CURVES = (GREY, "#c7761d", BLUE)  # colours of learning curves
# A name, and an accuracy with the bounds of its interval, as fractions
Bar = tuple[str, float, float, float]


def accuracy(path: Path, rows: Sequence[Bar], baselines: Sequence[Bar] = ()) -> None:
    """Writes a PNG with one bar for each row, after those of the baselines, which are pale and stand apart.

    A dashed line continues the best baseline through the bars, so that the eye need not measure.
    """
    from matplotlib.figure import Figure

    places = [*range(len(baselines)), *(len(baselines) + _GAP * bool(baselines) + i for i in range(len(rows)))]
    figure = Figure(figsize=(1.2 + 1.5 * (places[-1] + 1), 4.6), dpi=2 * DPI, layout="constrained")
    axes = figure.add_subplot()
    if baselines:
        last = len(baselines) - 1
        best = max(range(len(baselines)), key=lambda i: baselines[i][1])
        level = 100 * baselines[best][1]
        axes.plot([best, places[-1] + 0.4], [level, level], color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=3)
        for name, start, stop in (("baselines", 0, last), ("this pipeline", places[last + 1], places[-1])):
            _caption(axes, name, start, stop)
    for x, (_, *values) in zip(places, [*baselines, *rows], strict=True):
        _bar(axes, x, *values, colour=_PALE if x < len(baselines) else BLUE)
    axes.set_title("Accuracy on the test split, with 95 % interval", loc="left", fontsize=12, color=DARK, pad=38)
    axes.set_xticks(places, [name for name, *_ in [*baselines, *rows]], fontsize=11, color=DARK)
    axes.set_xlim(-0.6, places[-1] + 0.6)
    _percent_axis(axes)
    save(rasterised(figure), path)


def _bar(axes: "Axes", x: float, accuracy: float, low: float, high: float, colour: str) -> None:
    axes.bar(x, 100 * accuracy, width=0.56, color=colour)
    axes.vlines(x, 100 * low, 100 * high, color=DARK, linewidth=1.6, zorder=4)
    interval = f"{100 * low:.1f} to {100 * high:.1f}"
    for text, offset, size, weight, shade in (
        (f"{100 * accuracy:.1f} %", 17, 14, "bold", DARK),
        (interval, 5, 9, "normal", GREY),
    ):
        axes.annotate(
            text,
            (x, 100 * high),
            xytext=(0, offset),
            textcoords="offset points",
            ha="center",
            fontsize=size,
            fontweight=weight,
            color=shade,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            zorder=5,
        )


def _caption(axes: "Axes", text: str, start: float, stop: float) -> None:
    """Names a group of bars under a line, below their own names."""
    from matplotlib.transforms import ScaledTranslation

    points = ScaledTranslation(0, -_BELOW / 72, axes.figure.dpi_scale_trans)
    below = axes.get_xaxis_transform() + points  # x in data coordinates, y from the axis downwards
    axes.annotate(
        text,
        ((start + stop) / 2, 0),
        xytext=(0, -4),
        textcoords="offset points",
        xycoords=below,
        ha="center",
        va="top",
        fontsize=10,
        color=GREY,
        annotation_clip=False,
    )
    axes.annotate(
        "",
        (start - 0.35, 0),
        xytext=(stop + 0.35, 0),
        xycoords=below,
        textcoords=below,
        arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0},
        annotation_clip=False,
    )


def _percent_axis(axes: "Axes") -> None:
    axes.set_yticks(range(0, 101, 25), [f"{y} %" for y in range(0, 101, 25)], fontsize=9, color=GREY)
    axes.set_ylim(0, 100)
    axes.tick_params(length=0)
    axes.grid(axis="y", color=_GRID)
    axes.set_axisbelow(True)
    axes.spines[["left", "top", "right"]].set_visible(False)


def learning_curve(path: Path, curves: Mapping[str, Sequence[tuple[int, float, float, float]]]) -> None:
    """Writes a PNG of accuracy against training rows, on a logarithmic axis.

    `curves` maps a name to (training rows, accuracy, low, high) in the order of the rows.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 4.6), dpi=2 * DPI, layout="constrained")
    axes = figure.add_subplot()
    sizes = sorted({size for points in curves.values() for size, *_ in points})
    heights = _apart([100 * points[-1][1] for points in curves.values()], _LINE)
    for number, (name, points) in enumerate(curves.items()):
        colour, shift = _CURVES[number], 1.02 ** (number - 1)  # so that the intervals of one size stand side by side
        x = [size * shift for size, *_ in points]
        accuracy, low, high = ([100 * point[i] for point in points] for i in (1, 2, 3))
        axes.plot(x, accuracy, color=colour, marker="o", markersize=5, linewidth=1.6)
        axes.vlines(x, low, high, color=colour, linewidth=1.6)
        axes.annotate(
            name,
            (sizes[-1], heights[number]),
            xytext=(12, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=11,
        )
    axes.set_title("Accuracy on the test split, with 95 % interval", loc="left", fontsize=12, color=DARK, pad=12)
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes], fontsize=10, color=DARK)
    axes.set_xticks([], minor=True)
    axes.set_xlabel("training rows", fontsize=10, color=DARK)
    _percent_axis(axes)
    save(rasterised(figure), path)


def _apart(values: Sequence[float], least: float) -> list[float]:
    """The values, moved down where needed so that they differ by at least `least`; the largest stays."""
    moved = list(values)
    order = sorted(range(len(values)), key=lambda index: -values[index])
    for above, below in pairwise(order):
        moved[below] = min(moved[below], moved[above] - least)
    return moved
