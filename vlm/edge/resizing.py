"""Resizes a picture as LFM2-VL's processor does before it is handed to llama.cpp.

llama.cpp resizes on its own, with a bilinear filter of its own, and cuts large pictures into tiles. A picture that
already has the processor's size is left as it is by both.
"""

import math
from typing import TYPE_CHECKING

from vlm.config.errors import InputError
from vlm.edge.classifier import ImageLimits

if TYPE_CHECKING:
    from PIL import Image


def target(width: int, height: int, limits: ImageLimits) -> tuple[int, int]:
    """The width and height in pixels that a picture of this size is resized to, if it is not cut into tiles.

    Both sides become multiples of `limits.multiple`, so that the number of image tokens is between the limits and the
    proportions are about kept. Source: Lfm2VlImageProcessor.smart_resize in transformers. Raises InputError for a
    picture that gets more image tokens than the limit, because it is narrower than 1 to `limits.max_tokens`.
    """
    multiple = limits.multiple
    fewest, most = limits.min_tokens * multiple**2, limits.max_tokens * multiple**2  # pixels
    sides = [max(multiple, round(side / multiple) * multiple) for side in (width, height)]
    if sides[0] * sides[1] > most:
        scale = math.sqrt((height * width) / most)
        sides = [max(multiple, math.floor(side / scale / multiple) * multiple) for side in (width, height)]
    elif sides[0] * sides[1] < fewest:
        scale = math.sqrt(fewest / (height * width))
        sides = [math.ceil(side * scale / multiple) * multiple for side in (width, height)]
    tokens = sides[0] * sides[1] // multiple**2
    if tokens > limits.max_tokens:
        raise InputError(
            f"a picture of {width} x {height} pixels is too narrow: at its proportions it has {tokens} image tokens, "
            f"and {limits.max_tokens} is the limit"
        )
    return sides[0], sides[1]


def resized(picture: "Image.Image", limits: ImageLimits) -> "Image.Image":
    """The picture in the processor's size, as 8-bit RGB; transparent pixels are put over white, as `prepare` does."""
    from PIL import Image

    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB").resize(target(*picture.size, limits), Image.Resampling[limits.resample.upper()])
