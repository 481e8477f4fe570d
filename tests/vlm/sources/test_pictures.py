import io
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from vlm.sources import pictures

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
RGB = Image.fromarray(PIXELS)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_orientation(image: Image.Image, orientation: int, kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, kind, exif=exif)


def png_of_16_bits(samples: np.ndarray) -> bytes:
    """An RGB PNG of 16 bits a channel, which PIL reads and cannot write."""
    height, width, _ = samples.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    body = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def decoded(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.mode) == ("PNG", "RGB")
    return np.asarray(image)


@pytest.mark.parametrize(
    "data",
    [
        encoded(RGB, "JPEG"),
        encoded(RGB, "PNG"),
        with_orientation(RGB, 1, "JPEG"),
        encoded(RGB, "MPO", save_all=True, append_images=[RGB]),
    ],
    ids=["jpeg", "png", "upright", "mpo"],
)
def test_upright_rgb_jpeg_and_png_files_are_stored_as_they_are(data):
    assert pictures.inspect(data).store_as_is


TURNED = RGB.transpose(Image.Transpose.ROTATE_90)  # Exif orientation 6 turns it back
HALF_CLEAR = RGB.copy()
HALF_CLEAR.putalpha(Image.fromarray(np.where(np.arange(40) < 20, 0, 255).astype(np.uint8)[None].repeat(30, 0)))
OVER_WHITE = np.where((np.arange(40) < 20)[None, :, None], 255, PIXELS)
GREY = np.asarray(RGB.convert("L"))
GREY_RGB = GREY[..., None].repeat(3, 2)


@pytest.mark.parametrize(
    ("data", "pixels"),
    [
        (with_orientation(TURNED, 6, "PNG"), PIXELS),
        (encoded(RGB.convert("L"), "PNG"), GREY_RGB),
        (encoded(RGB.convert("L").convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE), "PNG"), None),
        (encoded(HALF_CLEAR, "PNG"), OVER_WHITE),
        (encoded(HALF_CLEAR.convert("LA"), "PNG"), None),
        (encoded(RGB, "PNG", transparency=tuple(int(v) for v in PIXELS[0, 0])), None),
        (encoded(RGB, "BMP"), PIXELS),
        (encoded(RGB, "TIFF"), PIXELS),
        (encoded(RGB, "WEBP", lossless=True), PIXELS),
        (encoded(RGB, "PNG", save_all=True, append_images=[RGB.convert("L").convert("RGB")]), PIXELS),
        (encoded(Image.fromarray(GREY.astype(np.uint16) * 257), "PNG"), GREY_RGB),
        (encoded(Image.fromarray(GREY.astype(np.int32) * 257), "TIFF"), GREY_RGB),
        (png_of_16_bits(PIXELS.astype(np.uint16) * 257), PIXELS),
        (encoded(RGB.convert("CMYK"), "TIFF"), None),
    ],
    ids="turned grey palette alpha grey-alpha transparent-colour bmp tiff webp apng 16-bit 32-bit 16-bit-rgb cmyk".split(),
)
def test_all_other_formats_become_an_upright_rgb_png(data, pixels):
    assert not pictures.inspect(data).store_as_is
    stored = decoded(pictures.upright_png(data))
    assert stored.shape == PIXELS.shape
    if pixels is not None:
        assert np.array_equal(stored, pixels)
    assert pictures.inspect(pictures.upright_png(data)).store_as_is


def test_cmyk_jpegs_keep_their_colours():
    red = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")
    assert np.abs(decoded(pictures.upright_png(red)).astype(int) - (255, 0, 0)).max() < 10


def test_the_first_frame_of_an_animation_is_taken():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    animation = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decoded(pictures.upright_png(animation))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"<html>not a picture</html>", "is in no picture format that Pillow can read"),
        (encoded(RGB, "JPEG")[:-200], "truncated"),
        (encoded(RGB, "PNG")[:-900], "truncated"),
        (encoded(Image.fromarray(GREY.astype(np.float32)), "TIFF"), "floating-point"),
    ],
    ids=["empty", "html", "cut-jpeg", "cut-png", "float"],
)
def test_the_reason_why_a_file_is_unreadable_is_one_line(data, reason):
    with pytest.raises(pictures.Unreadable, match=reason) as caught:
        pictures.inspect(data)
    message = str(caught.value)
    assert "\n" not in message and "0x" not in message


def test_copies_have_equal_pixels_however_they_are_encoded():
    png, bmp = pictures.inspect(encoded(RGB, "PNG")), pictures.inspect(encoded(RGB, "BMP"))
    assert png.pixels_digest == bmp.pixels_digest
    assert png.bytes_digest != bmp.bytes_digest


def test_the_same_bytes_of_another_shape_are_another_picture():
    flat = Image.fromarray(PIXELS.reshape(40, 30, 3))
    assert pictures.inspect(encoded(RGB, "PNG")).pixels_digest != pictures.inspect(encoded(flat, "PNG")).pixels_digest


HEIC = struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic" + bytes(100)
AVIF = struct.pack(">I", 24) + b"ftypavif\0\0\0\0mif1avif" + bytes(100)


def test_heic_without_the_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for data in (HEIC, HEIC.replace(b"ftypheic", b"ftypmif1")):
        with pytest.raises(pictures.Unreadable, match=r"^is HEIC; `pip install pillow-heif` reads it$"):
            pictures.inspect(data)
    with pytest.raises(pictures.Unreadable) as caught:
        pictures.inspect(AVIF)
    assert "HEIC" not in str(caught.value)


def test_heic_is_read_with_the_package():
    import pillow_heif

    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (64, 48), (200, 30, 60))).save(buffer)
    assert not pictures.inspect(buffer.getvalue()).store_as_is
    image = pictures.upright(buffer.getvalue())
    assert (image.size, image.mode) == ((64, 48), "RGB")
    assert np.abs(np.asarray(image).astype(int) - (200, 30, 60)).max() < 10
    with pytest.raises(pictures.Unreadable):
        pictures.inspect(buffer.getvalue()[:200])


def test_avif_is_read():
    assert np.asarray(pictures.upright(encoded(RGB, "AVIF"))).shape == PIXELS.shape


@pytest.mark.parametrize(
    ("data", "blank", "tiny"),
    [
        (encoded(RGB, "PNG"), False, False),
        (encoded(Image.new("RGB", (40, 30), (37, 201, 99)), "PNG"), True, False),
        (encoded(Image.new("RGB", (40, 30), (37, 201, 99)), "JPEG", quality=20), True, False),
        (encoded(Image.new("L", (40, 30), 255), "PNG"), True, False),
        (encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG"), True, True),
        (encoded(RGB.crop((0, 0, 40, 7)), "PNG"), False, True),
        (encoded(RGB.crop((0, 0, 8, 8)), "PNG"), False, False),
    ],
    ids=["neither", "one-colour", "one-colour-jpeg", "white", "one-pixel", "7-pixels-high", "8-pixels"],
)
def test_blank_and_tiny_pictures_are_recognised(data, blank, tiny):
    inspection = pictures.inspect(data)
    assert (inspection.blank, inspection.tiny) == (blank, tiny)


def test_one_dot_on_a_large_uniform_picture_is_enough_not_to_be_blank():
    image = Image.new("RGB", (200, 200))
    image.putpixel((3, 5), (255, 255, 255))
    assert not pictures.inspect(encoded(image, "PNG")).blank


def test_files_that_cannot_be_read_say_why(tmp_path):
    (tmp_path / "a.NEF").write_bytes(encoded(RGB, "TIFF"))
    for name, reason in (
        ("gone.png", "does not exist"),
        (".", "cannot be read: is a directory"),
        ("a.NEF", "raw file"),
    ):
        with pytest.raises(pictures.Unreadable, match=reason):
            pictures.read_file(tmp_path / name)


def test_suffixes_include_formats_that_cannot_be_read_and_no_other_files():
    suffixes = pictures.suffixes()
    assert {".jpg", ".jpeg", ".png", ".webp", ".tif", ".gif", ".heic", ".heif", ".avif", ".nef"} <= suffixes
    assert not {".pdf", ".txt", ".csv", ".json", ".mpg", ".h5", ".db", ""} & suffixes
