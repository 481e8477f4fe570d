"""The bar chart of the accuracy of every stage."""

from collections.abc import Sequence
from pathlib import Path

from vlm.measuring.pictures import BLUE, DARK, DPI, GREY, rasterised, save


def accuracy(path: Path, rows: Sequence[tuple[str, float, float, float]]) -> None:
    """Writes a PNG with one bar per row (name, accuracy, low, high): fractions, the last two an interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.2 + 1.7 * len(rows), 4.2), dpi=2 * DPI, layout="constrained")
    axes = figure.add_subplot()
    for x, (_, accuracy, low, high) in enumerate(rows):
        axes.bar(x, 100 * accuracy, width=0.56, color=BLUE)
        axes.vlines(x, 100 * low, 100 * high, color=DARK, linewidth=1.6)
        interval = f"{100 * low:.1f} to {100 * high:.1f}"
        for text, offset, size, weight, colour in (
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
                color=colour,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            )
    axes.set_title("Accuracy on the test split, with 95 % interval", loc="left", fontsize=12, color=DARK, pad=38)
    axes.set_xticks(range(len(rows)), [name for name, *_ in rows], fontsize=11, color=DARK)
    axes.set_yticks(range(0, 101, 25), [f"{y} %" for y in range(0, 101, 25)], fontsize=9, color=GREY)
    axes.set_xlim(-0.6, len(rows) - 0.4)
    axes.set_ylim(0, 100)
    axes.tick_params(length=0)
    axes.grid(axis="y", color="#e4e4e4")
    axes.set_axisbelow(True)
    axes.spines[["left", "top", "right"]].set_visible(False)
    save(rasterised(figure), path)
