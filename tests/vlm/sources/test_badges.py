import io
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from vlm.sources import badges

ICONS = ["toyota", "bmw", "audi"]


def rendered(count: int, seed: int = 1, stream: int = 0, severity: float = 0.5, workers: int = 1):
    return list(badges.render_split(ICONS, count, seed, stream, severity, workers))


def test_a_badge_is_a_small_rgb_jpeg():
    image = Image.open(io.BytesIO(badges.render("toyota", badges.rng_for(1, 0, 0))))
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (badges.SIZE, badges.SIZE))


def test_equal_arguments_give_equal_bytes():
    assert rendered(6) == rendered(6)


def test_sample_i_does_not_depend_on_how_many_there_are():
    assert rendered(3) == rendered(6)[:3]


def test_several_processes_render_the_same_as_one():
    assert rendered(70, workers=2) == rendered(70)


def test_streams_and_seeds_differ():
    base = {picture for _, picture in rendered(4)}
    assert base.isdisjoint({picture for _, picture in rendered(4, stream=1)})
    assert base.isdisjoint({picture for _, picture in rendered(4, seed=2)})


def test_every_class_is_drawn():
    labels = [label for label, _ in islice(badges.render_split(ICONS, 60, 1, 0, 0.0, 1), 60)]
    assert set(labels) == {0, 1, 2}


def test_the_emblem_is_on_a_clean_badge():
    """At severity 0, two badges that differ only in the icon differ in a good part of their pixels."""
    mask = np.asarray(badges.icon("toyota")) > 128
    assert 0.1 < mask.mean() < 0.6
    one, other = (badges.render(name, badges.rng_for(1, 0, 0), severity=0.0) for name in ("toyota", "bmw"))
    difference = np.asarray(Image.open(io.BytesIO(one)), int) - np.asarray(Image.open(io.BytesIO(other)), int)
    assert (np.abs(difference).max(2) > 60).mean() > 0.02


def test_the_error_for_an_unknown_icon_names_it():
    with pytest.raises(badges.UnknownIcon, match="trabant"):
        badges.icon("trabant")
