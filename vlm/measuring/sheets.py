"""Contact sheets: PNGs of a split's samples and of the samples that a model got wrong."""

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from vlm.config.errors import InputError
from vlm.measuring.pictures import DARK, DPI, GREY, RED, put_text, rasterised, save

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image

    from vlm.measuring.answers import Predictions

T = TypeVar("T")

_MISTAKES = 48  # pictures in mistakes.png
_COLUMNS = 8  # pictures per row

# Sizes in pixels
_BOX = 112  # pictures are scaled to fit into a square of this side
_CELL = 130  # distance from one picture to the next
_MARGIN = _CELL - _BOX
_LINE = 16  # height of a line of text
_TITLE = 40  # height of the title


def samples(path: str | Path, data: str | Path, labels: Sequence[str], count: int = 64) -> None:
    """Writes a contact sheet of up to `count` samples of the split `data`, the same number per label if possible.

    The samples are in the order of `labels`. If there are more labels than `count`, only some are shown, evenly spaced.
    """
    import pyarrow.parquet as pq

    of_label: dict[str, list[str]] = {label: [] for label in labels}
    table = pq.read_table(data, columns=["id", "label"])
    for id_, label in zip(table["id"].to_pylist(), table["label"].to_pylist(), strict=True):
        of_label[label].append(id_)
    shown = _spread([label for label in labels if of_label[label]], count)
    # Choose one sample of each label, then a second of each, and so on.
    rounds = sorted((nth, i) for i, label in enumerate(shown) for nth in range(len(of_label[label])))
    chosen = [(shown[i], of_label[shown[i]][nth]) for i, nth in sorted((i, nth) for nth, i in rounds[:count])]
    files = _read_pictures(data, {id_ for _, id_ in chosen})
    title = f"{Path(data).stem}: {len(chosen):,} of {len(table):,} samples, {len(shown)} of {len(labels)} labels"
    save(_draw_sheet(title, [_Tile(files[id_], ((label, DARK),)) for label, id_ in chosen]), path)


@dataclass(frozen=True)
class _Tile:
    """A picture file and the lines below it, each as (text, colour)."""

    picture: bytes
    lines: tuple[tuple[str, str], ...]


def mistakes(path: Path, predictions: "Predictions") -> None:
    """Writes a contact sheet of up to 48 wrong answers, in the order of the labels."""
    place = {label: number for number, label in enumerate(predictions.labels)}
    wrong = predictions.mistakes().assign(place=lambda rows: rows["label"].map(place)).sort_values(["place", "id"])
    chosen = wrong.iloc[_spread(range(len(wrong)), _MISTAKES)]
    title = f"{predictions.name}: {len(wrong):,} of {len(predictions.frame):,} samples wrong"
    if 0 < len(chosen) < len(wrong):
        title += f", {len(chosen)} shown"
    save(answers(title, chosen, predictions), path)


def answers(title: str, rows: "pd.DataFrame", predictions: "Predictions") -> "Image.Image":
    """Draws a contact sheet of samples with their labels, the answers, and the answers' probabilities if there are any.

    `rows` are rows of `predictions.frame`. Raises InputError if the split that was answered lacks one of the samples.
    """
    with predictions.open_data() as data:
        files = _read_pictures(data, rows["id"])
    missing = [id_ for id_ in rows["id"] if id_ not in files]
    if missing:
        raise InputError(
            f"{predictions.data}: has no sample {missing[0]!r}, which was answered; `dvc repro` makes both anew"
        )

    def lines(row: Any) -> tuple[tuple[str, str], ...]:
        said = (
            f"said: {row.predicted}"
            if isinstance(row.predicted, str)
            else f"“{row.text}”"
            if row.text.strip()
            else "(nothing)"
        )
        confidence = [] if math.isnan(row.confidence) else [(f"p = {row.confidence:.2g}", GREY)]
        return (f"true: {row.label}", DARK), (said, GREY if row.right else RED), *confidence

    return _draw_sheet(title, [_Tile(files[row.id], lines(row)) for row in rows.itertuples(index=False)])


def _spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` items, evenly spaced from the first to the last."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def _read_pictures(data: str | Path | BinaryIO, ids: Iterable[str]) -> dict[str, bytes]:
    """{id: picture file} of the samples `ids`. Keeps only these in memory, besides a few row groups while reading."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    wanted, found = pa.array(list(ids), pa.string()), {}
    with pq.ParquetFile(data, pre_buffer=False) as file:
        for batch in file.iter_batches(batch_size=64, columns=["id", "image"]):
            rows = batch.filter(pc.is_in(batch["id"], wanted)).to_pylist()
            found |= {row["id"]: row["image"]["bytes"] for row in rows}
    return found


def _draw_sheet(title: str, tiles: Sequence[_Tile]) -> "Image.Image":
    """Draws the tiles in rows of eight below a title; returns an image with a palette of 256 colours."""
    import numpy as np
    from matplotlib.figure import Figure
    from PIL import Image

    cell_height = _BOX + _LINE * max((len(tile.lines) for tile in tiles), default=0) + 14
    width, height = _COLUMNS * _CELL + _MARGIN, _TITLE + -(-len(tiles) // _COLUMNS) * cell_height
    sheet = Image.new("RGB", (width, height), "white")
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    put_text(figure, title, _MARGIN, _TITLE // 2, width - 2 * _MARGIN, ha="left", fontsize=10, color=DARK)
    for i, tile in enumerate(tiles):
        x, y = _MARGIN + i % _COLUMNS * _CELL, _TITLE + i // _COLUMNS * cell_height
        picture = _fitted(tile.picture)
        sheet.paste("#f3f3f3", (x, y, x + _BOX, y + _BOX))
        sheet.paste(picture, (x + (_BOX - picture.width) // 2, y + (_BOX - picture.height) // 2))
        for j, (text, colour) in enumerate(tile.lines):
            centre = x + _BOX // 2, y + _BOX + 10 + j * _LINE
            put_text(figure, text, *centre, _CELL - 6, ha="center", fontsize=8, color=colour)
    figure.figimage(np.asarray(sheet))
    drawn = rasterised(figure)
    # With a palette the file is a third of the size. Its nearly white colours become white: quantizing greys the page.
    palette = drawn.quantize(256, Image.Quantize.MEDIANCUT)
    colours = np.reshape(palette.getpalette(), (-1, 3))
    colours[colours.min(axis=1) > 245] = 255
    palette.putpalette(colours.ravel().tolist())
    return drawn.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)


def _fitted(picture: bytes) -> "Image.Image":
    """Decodes a picture and scales it, up or down, until it just fits into the box. RGB."""
    from PIL import Image

    image = Image.open(io.BytesIO(picture))
    image.draft("RGB", (2 * _BOX, 2 * _BOX))  # lets the JPEG decoder skip detail that would be lost in scaling
    scale = _BOX / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
