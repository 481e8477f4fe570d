"""Predictions and splits -> the CSV files and pictures that `dvc plots` and the README show.

Every file is a function of its input, byte for byte: CSV rows are sorted, pictures carry neither a date nor a version.
Pictures are small, for they are committed to git.
"""

import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vlm import metrics

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure
    from PIL import Image

T = TypeVar("T")

NO_LABEL = "(no label)"
_TOP = 15  # pairs in top_confusions.csv
_MISTAKES = 48  # pictures in mistakes.png

# A contact sheet, in pixels
_COLUMNS = 8
_BOX = 112  # what a picture fits into
_CELL = 130  # from one picture to the next
_MARGIN = _CELL - _BOX
_LINE = 16  # of text
_TITLE = 40
_DPI = 100

_DARK, _GREY, _RED, _BLUE = "#222222", "#707070", "#b3261e", "#3b75af"

# Tried in this order for a character that DejaVu Sans, which comes with matplotlib, does not have.
_FALLBACK_FONTS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "Hiragino Sans", "Microsoft YaHei")


def write(directory: str | Path, predictions: "pd.DataFrame", labels: Sequence[str], data: str | Path) -> None:
    """Writes confusion.csv, top_confusions.csv, per_class.csv and mistakes.png into `directory`.

    `predictions` is as in vlm.metrics, `data` the parquet file of the split that they are about. Raises ValueError if
    there are no predictions, or a label that is not one of `labels`.
    """
    import pandas as pd

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    truth, answers, present = metrics.truth_and_answers(predictions, labels)
    predicted = [answer or NO_LABEL for answer in answers]
    pairs = sorted(zip(truth, predicted, strict=True))
    _to_csv(pd.DataFrame(pairs, columns=["actual", "predicted"]), directory / "confusion.csv")
    _to_csv(_top_confusions(truth, predicted), directory / "top_confusions.csv")
    _to_csv(_per_class(truth, answers, present), directory / "per_class.csv")
    _draw_mistakes(directory / "mistakes.png", predictions, data)


def confidence(directory: str | Path, predictions: "pd.DataFrame") -> None:
    """Writes reliability.csv and risk_coverage.csv into `directory`, without rows for answers without probabilities."""
    import pandas as pd

    directory = Path(directory)
    bins, curve = (
        pd.DataFrame(columns=["samples", "confidence", "accuracy"]),
        pd.DataFrame(columns=["coverage", "risk"]),
    )
    if predictions["probabilities"].notna().all():
        sure, right = metrics.confidence_and_hits(predictions)
        bins = pd.DataFrame(metrics.reliability(sure, right), columns=bins.columns).round(6)
        curve = _risk_coverage(sure, right)
    _to_csv(bins, directory / "reliability.csv")
    _to_csv(curve, directory / "risk_coverage.csv")


def samples(path: str | Path, data: str | Path, labels: Sequence[str], count: int = 64) -> None:
    """A contact sheet of up to `count` samples of a split, spread over the labels, in the order of `labels`."""
    import pyarrow.parquet as pq

    of_label: dict[str, list[str]] = {label: [] for label in labels}
    table = pq.read_table(data, columns=["id", "label"])
    for id_, label in zip(table["id"].to_pylist(), table["label"].to_pylist(), strict=True):
        of_label[label].append(id_)
    shown = _spread([label for label in labels if of_label[label]], count)
    # One of each label, then a second one, and so on.
    rounds = sorted((nth, i) for i, label in enumerate(shown) for nth in range(len(of_label[label])))
    chosen = [(shown[i], of_label[shown[i]][nth]) for i, nth in sorted((i, nth) for nth, i in rounds[:count])]
    files = _read_pictures(data, {id_ for _, id_ in chosen})
    title = f"{Path(data).stem}: {len(chosen):,} of {len(table):,} samples, {len(shown)} of {len(labels)} labels"
    _draw_sheet(path, title, [_Tile(files[id_], ((label, _DARK),)) for label, id_ in chosen])


def class_distribution(path: str | Path, counts: Mapping[str, Mapping[str, int]]) -> None:
    """A CSV with the rows of every label in every split; `counts` is {split: {label: rows}}."""
    import pandas as pd

    rows = [(label, count, split) for split, of_label in counts.items() for label, count in of_label.items()]
    _to_csv(pd.DataFrame(rows, columns=["label", "count", "split"]), path)


def stages(path: str | Path, rows: Sequence[tuple[str, float, float, float]]) -> None:
    """A bar for every (name, accuracy, low, high), fractions all, with its interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.2 + 1.7 * len(rows), 4.2), dpi=2 * _DPI, layout="constrained")
    axes = figure.add_subplot()
    for x, (_, accuracy, low, high) in enumerate(rows):
        axes.bar(x, 100 * accuracy, width=0.56, color=_BLUE)
        axes.vlines(x, 100 * low, 100 * high, color=_DARK, linewidth=1.6)
        interval = f"{100 * low:.1f} to {100 * high:.1f}"
        for text, offset, size, weight, colour in (
            (f"{100 * accuracy:.1f} %", 17, 14, "bold", _DARK),
            (interval, 5, 9, "normal", _GREY),
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
    axes.set_title("Accuracy on the test split, with 95 % interval", loc="left", fontsize=12, color=_DARK, pad=38)
    axes.set_xticks(range(len(rows)), [name for name, *_ in rows], fontsize=11, color=_DARK)
    axes.set_yticks(range(0, 101, 25), [f"{y} %" for y in range(0, 101, 25)], fontsize=9, color=_GREY)
    axes.set_xlim(-0.6, len(rows) - 0.4)
    axes.set_ylim(0, 100)
    axes.tick_params(length=0)
    axes.grid(axis="y", color="#e4e4e4")
    axes.set_axisbelow(True)
    axes.spines[["left", "top", "right"]].set_visible(False)
    _save(_rasterised(figure), path)


# Tables


def _top_confusions(actual: list[str], predicted: list[str]) -> "pd.DataFrame":
    """The most frequent wrong pairs; `rate` is the share of the label's samples that go wrong this way."""
    import pandas as pd

    samples = Counter(actual)
    pairs = Counter((a, p) for a, p in zip(actual, predicted, strict=True) if a != p)
    rows = [(f"{a} → {p}", count, round(count / samples[a], 6)) for (a, p), count in pairs.items()]
    rows.sort(key=lambda row: (-row[1], row[0]))
    return pd.DataFrame(rows[:_TOP], columns=["confusion", "count", "rate"])


def _risk_coverage(confidence: "np.ndarray", right: "np.ndarray") -> "pd.DataFrame":
    """The share of errors (risk) among the share of samples (coverage) of which the model is surest; 100 points."""
    import numpy as np
    import pandas as pd

    errors = np.cumsum(~right[np.argsort(-confidence, kind="stable")])
    kept = np.unique(np.ceil(len(right) * np.linspace(0.01, 1, 100)).astype(int))
    return pd.DataFrame({"coverage": kept / len(right), "risk": errors[kept - 1] / kept}).round(6)


def _per_class(truth: list[str], answers: list[str], present: list[str]) -> "pd.DataFrame":
    import pandas as pd
    from sklearn.metrics import precision_recall_fscore_support

    present = sorted(present)
    precision, recall, f1, support = precision_recall_fscore_support(truth, answers, labels=present, zero_division=0.0)
    columns = {"label": present, "f1": f1, "precision": precision, "recall": recall, "support": support.astype(int)}
    return pd.DataFrame(columns).round(6)


def _to_csv(table: "pd.DataFrame", path: str | Path) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False, lineterminator="\n")


# Pictures


@dataclass(frozen=True)
class _Tile:
    """A picture file and the lines under it, each a text and its colour."""

    picture: bytes
    lines: tuple[tuple[str, str], ...]


def _draw_mistakes(path: Path, predictions: "pd.DataFrame", data: str | Path) -> None:
    wrong = predictions[predictions["label"] != predictions["predicted"]].sort_values(["label", "id"])
    chosen = _spread(list(wrong[["id", "label", "predicted", "text"]].itertuples(index=False)), _MISTAKES)
    files = _read_pictures(data, {row.id for row in chosen})

    def said(row: Any) -> str:
        if isinstance(row.predicted, str):
            return f"said: {row.predicted}"
        return f"“{row.text}”" if row.text.strip() else "(nothing)"

    tiles = [_Tile(files[row.id], ((f"true: {row.label}", _DARK), (said(row), _RED))) for row in chosen]
    title = f"{path.parent.name}: {len(wrong):,} of {len(predictions):,} samples wrong"
    if 0 < len(chosen) < len(wrong):
        title += f", {len(chosen)} shown"
    _draw_sheet(path, title, tiles)


def _spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` items, evenly spaced from the first to the last."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def _read_pictures(data: str | Path, ids: Iterable[str]) -> dict[str, bytes]:
    """The picture files of the samples `ids` by id. Holds those and a few row groups of the rest."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    wanted, found = pa.array(list(ids), pa.string()), {}
    with pq.ParquetFile(data, pre_buffer=False) as file:
        for batch in file.iter_batches(batch_size=64, columns=["id", "image"]):
            rows = batch.filter(pc.is_in(batch["id"], wanted)).to_pylist()
            found |= {row["id"]: row["image"]["bytes"] for row in rows}
    return found


def _draw_sheet(path: str | Path, title: str, tiles: Sequence[_Tile]) -> None:
    """Tiles in rows of eight under a title."""
    import numpy as np
    from matplotlib.figure import Figure
    from PIL import Image

    cell_height = _BOX + _LINE * max((len(tile.lines) for tile in tiles), default=0) + 14
    width, height = _COLUMNS * _CELL + _MARGIN, _TITLE + -(-len(tiles) // _COLUMNS) * cell_height
    sheet = Image.new("RGB", (width, height), "white")
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    _put_text(figure, title, _MARGIN, _TITLE // 2, width - 2 * _MARGIN, ha="left", fontsize=10, color=_DARK)
    for i, tile in enumerate(tiles):
        x, y = _MARGIN + i % _COLUMNS * _CELL, _TITLE + i // _COLUMNS * cell_height
        picture = _fitted(tile.picture)
        sheet.paste("#f3f3f3", (x, y, x + _BOX, y + _BOX))
        sheet.paste(picture, (x + (_BOX - picture.width) // 2, y + (_BOX - picture.height) // 2))
        for j, (text, colour) in enumerate(tile.lines):
            centre = x + _BOX // 2, y + _BOX + 10 + j * _LINE
            _put_text(figure, text, *centre, _CELL - 6, ha="center", fontsize=8, color=colour)
    figure.figimage(np.asarray(sheet))
    drawn = _rasterised(figure)
    # A palette is a third of the size. What is nearly white in it is white, or the page would be a little grey.
    palette = drawn.quantize(256, Image.Quantize.MEDIANCUT)
    colours = np.reshape(palette.getpalette(), (-1, 3))
    colours[colours.min(axis=1) > 245] = 255
    palette.putpalette(colours.ravel().tolist())
    _save(drawn.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG), path)


def _fitted(picture: bytes) -> "Image.Image":
    """A picture file as RGB, as large as the box allows."""
    from PIL import Image

    image = Image.open(io.BytesIO(picture))
    image.draft("RGB", (2 * _BOX, 2 * _BOX))  # lets the JPEG decoder skip detail that is scaled away
    scale = _BOX / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


@cache
def _fonts() -> list[str]:
    """The font families to draw a text with: one that is always there, and those for what it lacks that are here."""
    import logging

    from matplotlib.font_manager import get_font_names

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # tells of fonts without the asked weight
    installed = set(get_font_names())
    return ["DejaVu Sans", *(font for font in _FALLBACK_FONTS if font in installed)]


@cache
def _characters() -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font

    return frozenset().union(*(get_font(findfont(font)).get_charmap() for font in _fonts()))


def _put_text(figure: "Figure", text: str, x: int, y: int, room: int, **style: Any) -> None:
    """Writes a text at a place in pixels from the top left, on one line, cut off with an ellipsis to `room` pixels.

    A character that no font has becomes a question mark in a diamond.
    """
    text = "".join(c if ord(c) in _characters() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))
    width, height = figure.bbox.size
    place = x / width, 1 - y / height
    artist = figure.text(*place, text, va="center_baseline", fontfamily=_fonts(), parse_math=False, **style)
    end = min(len(text), room)  # no character is narrower than a pixel
    while end and artist.get_window_extent().width > room:
        end -= 1
        artist.set_text(text[:end].rstrip() + "…")


def _rasterised(figure: "Figure") -> "Image.Image":
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _save(image: "Image.Image", path: str | Path) -> None:
    """Writes a PNG; saved by matplotlib it would name its version."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "PNG", optimize=True)
