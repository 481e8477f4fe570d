"""Reads picture files of any format as upright RGB pictures, and computes the digests that identify copies."""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

_ORIENTATION = 0x0112  # the Exif tag; 1 is upright, 2 to 8 are turned or mirrored
_WHITE = (255, 255, 255, 255)
_TINY = 8  # pixels; a picture with a shorter side than this shows nothing that can be classified
_BLANK = 8  # of 255: a picture is blank if no channel varies by more (JPEG turns a single colour into a few)
_HASH_SIZE = 16  # a perceptual hash has 16 x 16 bits
_HASHED = 4 * _HASH_SIZE  # pixels, height and width at which it is computed; smaller pictures all look alike to it

# Formats that Pillow registers but that are no pictures (video, measurements, vector graphics).
_NO_PICTURES = {"BUFR", "EMF", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "WMF"}
# Formats of pictures that Pillow may not know.
_MORE_SUFFIXES = {".heic", ".heif", ".hif", ".avif", ".jxl"}
_CAMERA_RAW = {".arw", ".cr2", ".cr3", ".dng", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".srw"}
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_AVIF_BRANDS = {b"avif", b"avis"}


class Unreadable(Exception):
    """The bytes cannot be read as a picture. The message is the reason and follows the picture's name."""


@dataclass(frozen=True)
class Inspection:
    """What we need to know about a picture file before it is stored."""

    bytes_digest: bytes  # of the file. The same on every machine, so the order of pictures and the splits depend on it
    pixels_digest: bytes  # equal for copies, however they are encoded; depends on the JPEG decoder
    store_as_is: bool  # already an upright 8-bit RGB JPEG or PNG
    blank: bool = False  # all pixels (nearly) equal
    tiny: bool = False  # a side of under 8 pixels
    perceptual_hash: bytes | None = None  # 256 bits; None if it was not asked for, or says nothing about the picture


def inspect(data: bytes, perceptual: bool = False) -> Inspection:
    """Decodes a picture file, and computes its perceptual hash if asked to. Raises Unreadable."""
    image, as_is = _decode(data)
    pixels = hashlib.sha256(f"{image.width} x {image.height}".encode())
    pixels.update(image.tobytes())
    blank, shorter = _is_blank(image), min(image.size)
    hashed = _perceptual_hash(image) if perceptual and not blank and shorter >= _HASHED else None
    return Inspection(hashlib.sha256(data).digest(), pixels.digest(), as_is, blank, shorter < _TINY, hashed)


def upright(data: bytes) -> Image.Image:
    """The picture as upright 8-bit RGB; the first frame of an animation. Raises Unreadable."""
    return _decode(data)[0]


def upright_png(data: bytes) -> bytes:
    """The picture as an upright 8-bit RGB PNG file. Raises Unreadable."""
    image = upright(data)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def suffixes() -> frozenset[str]:
    """The suffixes of picture files, in lower case with the dot, whether or not this machine can read them."""
    registered = Image.registered_extensions()  # fills Image.OPEN too
    readable = Image.OPEN.keys() - _NO_PICTURES
    known = {suffix for suffix, kind in registered.items() if kind in readable}
    return frozenset(known | _MORE_SUFFIXES | _CAMERA_RAW)


def read_file(file: Path) -> bytes:
    """The bytes of a picture file. Raises Unreadable."""
    if file.suffix.lower() in _CAMERA_RAW:  # many are TIFF files, of which Pillow would read the thumbnail
        raise Unreadable("is a camera's raw file; convert it to JPEG or PNG")
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise Unreadable("does not exist") from None
    except (OSError, ValueError) as error:  # ValueError: the path has a null byte
        reason = getattr(error, "strerror", None) or str(error)
        raise Unreadable(f"cannot be read: {reason.lower()}") from None


def _decode(data: bytes) -> tuple[Image.Image, bool]:
    """The picture as upright RGB, and whether the file can be stored as it is."""
    if not data:
        raise Unreadable("is empty")
    if _is_heic(data):
        _register_heic()
    try:
        image = Image.open(io.BytesIO(data))
        as_is = _is_plain(image, data)
        return _to_rgb(ImageOps.exif_transpose(image)), as_is
    except Unreadable:
        raise
    except UnidentifiedImageError:
        raise Unreadable("is in no picture format that Pillow can read") from None
    except Exception as error:  # Pillow's decoders raise almost anything on broken bytes
        raise Unreadable(f"cannot be decoded: {str(error).partition(' <_io.')[0] or type(error).__name__}") from error


def _is_heic(data: bytes) -> bool:
    """Whether the file begins like HEIC: a box `ftyp` that lists its brands (ISO/IEC 23008-12)."""
    if data[4:8] != b"ftyp":
        return False
    size = min(int.from_bytes(data[:4], "big"), 256)
    brands = {data[start : start + 4] for start in (8, *range(16, size, 4))}
    return bool(brands & _HEIC_BRANDS) and not brands & _AVIF_BRANDS


def _register_heic() -> None:
    """Makes Pillow read HEIC. Raises Unreadable if the package for it is not installed."""
    try:
        import pillow_heif
    except ImportError:
        raise Unreadable("is HEIC; `pip install pillow-heif` reads it") from None
    pillow_heif.register_heif_opener()


def _is_plain(image: Image.Image, data: bytes) -> bool:
    """Whether every reader gets the same upright RGB pixels from the file."""
    if image.mode != "RGB" or image.getexif().get(_ORIENTATION, 1) in range(2, 9):
        return False
    if image.format == "PNG":
        eight_bits = data[24] == 8  # the IHDR chunk's bit depth; PIL's mode is RGB for 16 bits too
        return eight_bits and not image.is_animated and "transparency" not in image.info
    return image.format in ("JPEG", "MPO")  # MPO: a phone's JPEG with further pictures behind it


def _is_blank(image: Image.Image) -> bool:
    sample = image.resize((16, 16), Image.Resampling.NEAREST)  # is enough for nearly every picture that is not blank
    return all(high - low <= _BLANK for part in (sample, image) for low, high in part.getextrema())


def _perceptual_hash(image: Image.Image) -> bytes:
    """The signs of the picture's 16 x 16 lowest frequencies relative to their median (imagehash.phash), 32 bytes."""
    import imagehash

    return np.packbits(imagehash.phash(image, hash_size=_HASH_SIZE).hash).tobytes()


def _to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB. Transparent pixels are put over white; 16-bit greys are scaled (PIL would cut them off at 255)."""
    if image.mode == "F":
        raise Unreadable("has floating-point pixels, whose range is not known")
    if image.mode.startswith("I"):
        grey = np.asarray(image).clip(0, 65535) // 257
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image).convert("RGB")
    return image.convert("RGB")
