"""Drawing with matplotlib. Equal input gives equal files, and they are small enough for git."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

DPI = 100
DARK, GREY, RED, BLUE = "#222222", "#707070", "#b3261e", "#3b75af"

# Tried in this order for characters that DejaVu Sans, the font that comes with matplotlib, does not have.
_FALLBACK_FONTS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "Hiragino Sans", "Microsoft YaHei")


@cache
def _fonts() -> list[str]:
    """The font families to draw text with: DejaVu Sans, and those fallback fonts that are installed on this machine."""
    import logging

    from matplotlib.font_manager import get_font_names

    # Else it warns about every font that lacks the requested weight.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    installed = set(get_font_names())
    return ["DejaVu Sans", *(font for font in _FALLBACK_FONTS if font in installed)]


@cache
def _characters() -> frozenset[int]:
    """The code points that at least one of the fonts can draw."""
    from matplotlib.font_manager import findfont, get_font

    return frozenset().union(*(get_font(findfont(font)).get_charmap() for font in _fonts()))


def put_text(figure: "Figure", text: str, x: int, y: int, room: int, **style: Any) -> None:
    """Writes one line of text at (x, y) pixels from the top left, shortened to `room` pixels with an ellipsis.

    Characters that no font has become U+FFFD, the replacement character. `style` goes to matplotlib's Figure.text.
    """
    text = "".join(c if ord(c) in _characters() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))
    width, height = figure.bbox.size
    place = x / width, 1 - y / height
    artist = figure.text(*place, text, va="center_baseline", fontfamily=_fonts(), parse_math=False, **style)
    end = min(len(text), room)  # as every character is at least a pixel wide
    while end and artist.get_window_extent().width > room:
        end -= 1
        artist.set_text(text[:end].rstrip() + "…")


def rasterised(figure: "Figure") -> "Image.Image":
    """Draws a figure into an RGB image of figsize times dpi pixels."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def save(image: "Image.Image", path: str | Path) -> None:
    """Writes a PNG. Pillow does it because matplotlib would write its own version into the file."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "PNG", optimize=True)
