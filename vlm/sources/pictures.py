"""Picture files as people have them -> upright RGB pictures, and the two digests that tell copies apart."""

import hashlib
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

_ORIENTATION = 0x0112  # the Exif tag; 1 is upright, 2 to 8 are turned or mirrored
_WHITE = (255, 255, 255, 255)


class Unreadable(Exception):
    """No picture can be had from the bytes; the message is the reason."""


@dataclass(frozen=True)
class Inspection:
    """What there is to know about a picture file before it is stored."""

    bytes_digest: bytes  # the same on every machine: what order and splits depend on
    pixels_digest: bytes  # equal for copies, however they are encoded; depends on the JPEG decoder
    store_as_is: bool  # already an upright 8-bit RGB JPEG or PNG


def inspect(data: bytes) -> Inspection:
    """Decodes a picture file. Raises Unreadable."""
    image, as_is = _decode(data)
    pixels = hashlib.sha256(f"{image.width} x {image.height}".encode())
    pixels.update(image.tobytes())
    return Inspection(hashlib.sha256(data).digest(), pixels.digest(), as_is)


def upright(data: bytes) -> Image.Image:
    """The picture as upright 8-bit RGB; of an animation, its first frame. Raises Unreadable."""
    return _decode(data)[0]


def upright_png(data: bytes) -> bytes:
    """The same as a PNG file. Raises Unreadable."""
    image = upright(data)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _decode(data: bytes) -> tuple[Image.Image, bool]:
    if not data:
        raise Unreadable("is empty")
    try:
        image = Image.open(io.BytesIO(data))
        as_is = _is_plain(image, data)
        return _to_rgb(ImageOps.exif_transpose(image)), as_is
    except Unreadable:
        raise
    except Exception as error:  # on broken bytes PIL's decoders raise almost anything
        raise Unreadable(str(error).partition(" <_io.")[0] or type(error).__name__) from error


def _is_plain(image: Image.Image, data: bytes) -> bool:
    """Whether every reader gets the same upright RGB pixels from the file."""
    if image.mode != "RGB" or image.getexif().get(_ORIENTATION, 1) in range(2, 9):
        return False
    if image.format == "PNG":
        eight_bits = data[24] == 8  # the IHDR chunk's bit depth; PIL's mode is RGB for 16 bits too
        return eight_bits and not image.is_animated and "transparency" not in image.info
    return image.format in ("JPEG", "MPO")  # MPO: a phone's JPEG with further pictures behind it


def _to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB: transparent pixels over white, 16-bit greys scaled (PIL would cut them off at 255)."""
    if image.mode == "F":
        raise Unreadable("has floating-point pixels, whose range is not known")
    if image.mode.startswith("I"):
        grey = np.asarray(image).clip(0, 65535) // 257
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image).convert("RGB")
    return image.convert("RGB")
