import numpy as np
import pytest
from matplotlib.figure import Figure

from vlm.measuring import pictures


@pytest.fixture
def figure():
    return Figure(figsize=(4, 1), dpi=100)


def drawn_columns(figure):
    """First and last column of pixels that are not white."""
    dark = np.flatnonzero((np.asarray(pictures.rasterised(figure)).min(axis=2) < 200).any(axis=0))
    return dark[0], dark[-1]


def test_text_is_cut_off_at_its_room(figure):
    pictures.put_text(figure, "W" * 1000, 20, 50, room=150, ha="left", fontsize=10)
    first, last = drawn_columns(figure)
    assert first == pytest.approx(20, abs=3)
    assert 20 + 150 - 20 < last <= 20 + 150
    assert figure.texts[0].get_text().endswith("W…")


def test_text_is_one_line_of_characters_that_a_font_has(figure):
    pictures.put_text(figure, "  a\n\n b\tc \U0010ffff $x$", 20, 50, room=300, ha="left", fontsize=10)
    assert figure.texts[0].get_text() == "a b c \N{REPLACEMENT CHARACTER} $x$"
