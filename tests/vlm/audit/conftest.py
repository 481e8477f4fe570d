import numpy as np
import pytest
from PIL import Image

from tests.vlm.audit.samples import encoded
from vlm.sources import badges

MAKERS = ["acura", "bmw", "ford", "mazda"]


@pytest.fixture(scope="session")
def photos():
    """80 pictures of four badges, as (label, picture file)."""
    return [(MAKERS[k], jpeg) for k, jpeg in badges.render_split(MAKERS, 80, 1, 0, 0.3, workers=1)]


@pytest.fixture(scope="session")
def wall():
    """A picture of a grey wall, with the noise of a camera."""
    pixels = np.random.default_rng(0).normal(90, 3, (96, 128, 3)).clip(0, 255)
    return encoded(Image.fromarray(pixels.astype(np.uint8)))
