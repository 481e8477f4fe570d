"""Drawing text and pictures with matplotlib so that equal inputs give equal files, small enough for git."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

DPI = 100
DARK, GREY, RED, BLUE = "#222222", "#707070", "#b3261e", "#3b75af"

# Tried in this order for a character that DejaVu Sans, which comes with matplotlib, does not have.
_FALLBACK_FONTS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "Hiragino Sans", "Microsoft YaHei")


@cache
def _fonts() -> list[str]:
    """The font families for texts: one that is always installed, and the fallbacks that are installed here."""
    import logging

    from matplotlib.font_manager import get_font_names

    logging.getLogger("matplotlib.font_manager").setLevel(
        logging.ERROR
    )  # it reports fonts that lack the requested weight
    installed = set(get_font_names())
    return ["DejaVu Sans", *(font for font in _FALLBACK_FONTS if font in installed)]


@cache
def _characters() -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font

    return frozenset().union(*(get_font(findfont(font)).get_charmap() for font in _fonts()))


def put_text(figure: "Figure", text: str, x: int, y: int, room: int, **style: Any) -> None:
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


def rasterised(figure: "Figure") -> "Image.Image":
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def save(image: "Image.Image", path: str | Path) -> None:
    """Writes a PNG; saved by matplotlib it would name its version."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "PNG", optimize=True)
