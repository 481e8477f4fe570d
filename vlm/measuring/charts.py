"""Charts with intervals: the accuracy of every stage beside the baselines, and accuracy against labelled pictures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vlm.measuring.pictures import BLUE, DARK, DPI, GREY, rasterised, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PALE = "#b4bcc6"  # of the baselines
_GRID = "#e4e4e4"
_GAP = 0.5  # between the baselines and the stages, in bars
_BELOW = 44  # points from the axis to the line above a group's name
_LINE = 17  # points that a line of text takes beside a curve
_CURVES = (GREY, "#2f8f83", "#8fae1b", "#c7761d", BLUE, "#8f4fa8")  # colours of learning curves
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


def _percent_axis(axes: "Axes", bottom: int = 0) -> None:
    ticks = range(bottom, 101, 10 if bottom >= 50 else 25)
    axes.set_yticks(ticks, [f"{y} %" for y in ticks], fontsize=9, color=GREY)
    axes.set_ylim(bottom, 100)
    axes.tick_params(length=0)
    axes.grid(axis="y", color=_GRID)
    axes.set_axisbelow(True)
    axes.spines[["left", "top", "right"]].set_visible(False)


@dataclass(frozen=True)
class Labelled:
    """Accuracies of a method that has seen `labels` labelled pictures: of each seed, and an interval of the mean."""

    labels: int
    accuracies: Sequence[float]
    low: float
    high: float

    @property
    def mean(self) -> float:
        return sum(self.accuracies) / len(self.accuracies)


def learning_curve(path: Path, curves: Mapping[str, Sequence[Labelled]]) -> None:
    """Writes a PNG of accuracy against labelled pictures, on a logarithmic axis with 0 at its left.

    `curves` maps a name to its points, fewest labels first. A method that needs no labels has one point, at 0, and is
    drawn as a level line. The mean over seeds is the line, the interval a bar; each seed is a pale dot.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 5.4), dpi=2 * DPI, layout="constrained")
    axes = figure.add_subplot()
    sizes = sorted({point.labels for points in curves.values() for point in points} - {0})
    places = {size: math.log2(size / sizes[0]) for size in sizes} | {0: -1.0} if sizes else {0: 0.0}
    right = max(places.values())
    for number, points in enumerate(curves.values()):
        _learning_curve(axes, points, places, right, _CURVES[number % len(_CURVES)], 0.035 * (number - 2.5))
    lowest = min(min(point.low, *point.accuracies) for points in curves.values() for point in points)
    bottom = 10 * math.floor(9.5 * lowest)  # a little below the lowest point
    _percent_axis(axes, bottom if bottom >= 50 else 0)
    axes.set_xlim(-1.35, right + 0.12)
    _name_curves(axes, {name: 100 * points[-1].mean for name, points in curves.items()}, right)
    title = "What to do with N labelled pictures: accuracy on the test split, with 95 % interval"
    axes.set_title(title, loc="left", fontsize=12, color=DARK, pad=12)
    axes.set_xticks([places[size] for size in (0, *sizes)], [f"{size:,}" for size in (0, *sizes)])
    axes.tick_params(axis="x", labelsize=10, labelcolor=DARK)
    axes.set_xlabel("labelled pictures", fontsize=10, color=DARK)
    save(rasterised(figure), path)


def _learning_curve(
    axes: "Axes", points: Sequence[Labelled], places: Mapping[int, float], right: float, colour: str, shift: float
) -> None:
    """Draws one curve. `shift` moves its intervals and dots sideways, so that those of one size stand side by side."""
    x = [places[point.labels] + shift for point in points]
    means = [100 * point.mean for point in points]
    if points[-1].labels == 0:
        axes.plot([x[0], right + 0.12], means * 2, color=colour, linewidth=1.6, linestyle=(0, (5, 2)))
    else:
        axes.plot(x, means, color=colour, linewidth=1.8)
    axes.plot(x, means, color=colour, marker="o", markersize=5, linestyle="none")
    low, high = [100 * point.low for point in points], [100 * point.high for point in points]
    axes.vlines(x, low, high, color=colour, linewidth=1.3)
    for place, point in zip(x, points, strict=True):
        if len(point.accuracies) > 1:
            dots = [100 * accuracy for accuracy in point.accuracies]
            axes.plot(
                [place] * len(dots),
                dots,
                color=colour,
                marker="o",
                markersize=6,
                alpha=0.25,
                markeredgewidth=0,
                linestyle="none",
            )


def _name_curves(axes: "Axes", ends: Mapping[str, float], right: float) -> None:
    """Writes each curve's name to the right of its end, moved up or down where two would overlap."""
    low, high = axes.get_ylim()
    room = _LINE * (high - low) / 330  # 330 points are about the height of the axes
    heights = _apart(list(ends.values()), room)
    for number, ((name, end), height) in enumerate(zip(ends.items(), heights, strict=True)):
        colour = _CURVES[number % len(_CURVES)]
        axes.plot(
            [right + 0.15, right + 0.35],
            [end, height],
            color=colour,
            linewidth=0.8,
            clip_on=False,
            solid_capstyle="butt",
        )
        axes.annotate(
            f"{name}  {end:.1f} %",
            (right + 0.35, height),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=10.5,
            annotation_clip=False,
        )


def _apart(values: Sequence[float], least: float) -> list[float]:
    """The values, moved as little as possible so that they differ by at least `least` and keep their order."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    # Less `least` for each value below, they may be equal but must not fall: where they do, they take their mean.
    blocks: list[tuple[float, int]] = []  # mean, and how many values have it
    for rank, index in enumerate(order):
        mean, count = values[index] - rank * least, 1
        while blocks and blocks[-1][0] > mean:
            before, n = blocks.pop()
            mean, count = (before * n + mean * count) / (n + count), n + count
        blocks.append((mean, count))
    means = [mean for mean, count in blocks for _ in range(count)]
    moved = list(values)
    for rank, index in enumerate(order):
        moved[index] = means[rank] + rank * least
    return moved
