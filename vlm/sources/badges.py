"""Renders the embedded data set: photos of badges, made from brand icons.

The icons come from simple-icons-pack (CC0; the trademarks belong to their owners). A badge is rendered in the order in
which a photo comes about: the surface, the emblem on it in perspective, the light, objects in front, and the camera.
"""

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE = 128  # pixels, height and width
_ICON_SIZE = 256  # pixels; icons are drawn large once and only ever scaled down


class UnknownIcon(ValueError):
    """An icon name that simple-icons-pack does not have."""


@cache
def icon(name: str) -> Image.Image:
    """An icon's shape as an 8-bit mask of 256 x 256 pixels. Raises UnknownIcon."""
    import resvg_py
    import simple_icons_pack

    found = simple_icons_pack.get_icon(name)
    if found is None:
        raise UnknownIcon(name)
    png = resvg_py.svg_to_bytes(svg_string=found.svg, width=_ICON_SIZE, height=_ICON_SIZE, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png))).getchannel("A")


def render(name: str, rng: np.random.Generator, severity: float = 1.0) -> bytes:
    """One badge as a JPEG of 128 x 128 pixels.

    `severity` scales everything that makes a badge hard to read, from 0 (a clean, frontal icon on a varied surface) to
    1 (hardly readable). Equal arguments and generator states give equal bytes.
    """
    scene = _surface(rng, severity)
    scene = _put_emblem(scene, icon(name), rng, severity)
    scene = _light(scene, rng, severity)
    scene = _occlude(scene, rng, severity)
    return _photograph(scene, rng, severity)


def rng_for(seed: int, stream: int, index: int) -> np.random.Generator:
    """The generator for sample `index` of a stream (a split). Streams are independent, and so are their samples."""
    return np.random.default_rng(np.random.SeedSequence(entropy=seed, spawn_key=(stream, index)))


def render_split(
    names: Sequence[str], count: int, seed: int, stream: int, severity: float, workers: int
) -> Iterator[tuple[int, bytes]]:
    """Yields `count` badges in order, as (index into `names`, JPEG bytes), rendered by `workers` processes.

    Each sample draws its own class, so class counts vary as in a random sample. Sample i does not depend on `count`.
    """
    sample = partial(_sample, tuple(names), seed, stream, severity)
    if workers <= 1:
        yield from map(sample, range(count))
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(sample, range(count), chunksize=64)


def _sample(names: tuple[str, ...], seed: int, stream: int, severity: float, index: int) -> tuple[int, bytes]:
    rng = rng_for(seed, stream, index)
    label = int(rng.integers(len(names)))
    return label, render(names[label], rng, severity)


def _colour(rng: np.random.Generator) -> np.ndarray:
    """A random colour, RGB from 0 to 255; three in ten are grey, as most cars are."""
    colour = rng.uniform(0, 255, 3)
    return np.full(3, colour.mean()) if rng.random() < 0.3 else colour


def _luminance(colour: np.ndarray) -> float:
    return float(colour @ np.array([0.299, 0.587, 0.114]))


def _smooth_noise(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Noise with features of SIZE / cells pixels and values from about -1 to 1; shape (SIZE, SIZE)."""
    coarse = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def _surface(rng: np.random.Generator, severity: float) -> np.ndarray:
    """A plain, shaded, striped or mottled surface behind the badge; float array (SIZE, SIZE, 3), 0 to 255."""
    base, other = _colour(rng), _colour(rng)
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    angle = rng.uniform(0, 2 * np.pi)
    along = np.cos(angle) * x + np.sin(angle) * y
    kind = rng.choice(["plain", "gradient", "stripes", "mottled"])
    if kind == "plain":
        weight = np.zeros((SIZE, SIZE))
    elif kind == "gradient":
        weight = (along - along.min()) / np.ptp(along)
    elif kind == "stripes":
        weight = 0.5 + 0.5 * np.sign(np.sin(2 * np.pi * along * rng.uniform(3, 12)))
    else:
        weight = 0.5 + 0.5 * _smooth_noise(rng, int(rng.integers(3, 16)))
    weight = weight[..., None] * (0.25 + 0.45 * severity)
    return base * (1 - weight) + other * weight


def _contrasting(rng: np.random.Generator, background: np.ndarray, severity: float) -> np.ndarray:
    """A colour whose luminance differs from the background's by at least 110 (severity 0) to 50 (severity 1) of 255."""
    needed = 110 - 60 * severity
    for _ in range(50):
        colour = _colour(rng)
        if abs(_luminance(colour) - _luminance(background)) >= needed:
            return colour
    return np.full(3, 255.0 if _luminance(background) < 128 else 0.0)


def _perspective(rng: np.random.Generator, severity: float) -> list[float]:
    """Coefficients of PIL's PERSPECTIVE transform, scene to icon, for a random size, position, rotation and tilt."""
    size = SIZE * rng.uniform(0.80 - 0.30 * severity, 0.92)
    slack = (SIZE - size) / 2 + 6 * severity
    centre = SIZE / 2 + rng.uniform(-slack, slack, 2)
    angle = np.deg2rad(rng.normal(0, 2 + 13 * severity))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * size / 2
    corners = corners * rng.uniform(1 - 0.3 * severity, 1, 2)  # seen from the side: one axis is foreshortened
    corners = corners @ turn.T + rng.normal(0, size * 0.06 * severity, (4, 2)) + centre
    source = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * _ICON_SIZE
    rows, values = [], []
    for (u, v), (x, y) in zip(source, corners, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return list(np.linalg.solve(np.array(rows, float), np.array(values, float)))


def _put_emblem(scene: np.ndarray, mask: Image.Image, rng: np.random.Generator, severity: float) -> np.ndarray:
    """Puts the emblem on the scene: on a plate or not, flat or shaded like metal, with a shadow or not."""
    coefficients = _perspective(rng, severity)

    def warp(image: Image.Image) -> np.ndarray:
        warped = image.transform((SIZE, SIZE), Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BICUBIC)
        return np.asarray(warped, np.float32)[..., None] / 255

    background = scene.mean((0, 1))
    if rng.random() < 0.35:
        plate = Image.new("L", (_ICON_SIZE, _ICON_SIZE))
        draw, box = ImageDraw.Draw(plate), (0, 0, _ICON_SIZE - 1, _ICON_SIZE - 1)
        draw.ellipse(box, fill=255) if rng.random() < 0.5 else draw.rounded_rectangle(box, 40, fill=255)
        background = _colour(rng)
        alpha = warp(plate)
        scene = scene * (1 - alpha) + background * alpha
        # On a plate the icon keeps clear of the border.
        inner = Image.new("L", (_ICON_SIZE, _ICON_SIZE))
        margin = _ICON_SIZE // 8
        inner.paste(mask.resize((_ICON_SIZE - 2 * margin,) * 2, Image.Resampling.LANCZOS), (margin, margin))
        mask = inner
    colour = _contrasting(rng, background, severity)
    alpha = warp(mask)
    if rng.random() < 0.5:
        offset = rng.integers(1, 4, 2)
        shadow = np.roll(alpha, tuple(offset), (0, 1)) * rng.uniform(0.2, 0.6)
        scene = scene * (1 - shadow)
    emblem = np.broadcast_to(colour, (SIZE, SIZE, 3))
    if rng.random() < 0.5:  # metal: the emblem reflects a bright sky and a dark ground
        y = np.linspace(0, 1, SIZE)[:, None, None]
        emblem = emblem * (1 + rng.uniform(0.1, 0.1 + 0.25 * severity) * np.sin(2 * np.pi * (y * 2 + rng.random())))
    return scene * (1 - alpha) + emblem * alpha


def _light(scene: np.ndarray, rng: np.random.Generator, severity: float) -> np.ndarray:
    """Adds uneven light, exposure, a tint and sometimes a glare."""
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    slope = rng.uniform(0, 0.8 * severity)
    scene = scene * (1 + slope * (np.cos(angle) * x + np.sin(angle) * y))[..., None]
    scene = scene * rng.uniform(1 - 0.45 * severity, 1 + 0.25 * severity) * rng.uniform(1 - 0.12 * severity, 1, 3)
    if rng.random() < 0.35 * severity:
        cx, cy = rng.uniform(-0.5, 0.5, 2)
        radius = rng.uniform(0.08, 0.25)
        glare = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * radius**2))[..., None]
        scene = scene + 255 * rng.uniform(0.3, 0.9) * glare
    return np.clip(scene, 0, 255)


def _occlude(scene: np.ndarray, rng: np.random.Generator, severity: float) -> np.ndarray:
    """Draws up to two bars or blocks in front of the badge, like twigs, straps and stickers."""
    image = Image.fromarray(scene.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.binomial(2, 0.45 * severity))):
        colour = tuple(int(c) for c in _colour(rng))
        if rng.random() < 0.6:
            start, end = rng.uniform(0, SIZE, (2, 2))
            draw.line([tuple(start), tuple(end)], fill=colour, width=int(rng.integers(3, 11)))
        else:
            left, top = rng.uniform(0, SIZE * 0.8, 2)
            width, height = rng.uniform(SIZE * 0.12, SIZE * 0.34, 2)
            draw.rectangle((left, top, left + width, top + height), fill=colour)
    return np.asarray(image, np.float32)


def _photograph(scene: np.ndarray, rng: np.random.Generator, severity: float) -> bytes:
    """Applies the camera: low resolution, defocus, sensor noise and JPEG compression. Returns the JPEG file."""
    image = Image.fromarray(scene.astype(np.uint8))
    if rng.random() < 0.3 * severity:
        side = int(rng.integers(40, 80))
        image = image.resize((side, side), Image.Resampling.BILINEAR).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.3 + 1.9 * severity)))
    pixels = np.asarray(image, np.float32) + rng.normal(0, rng.uniform(1, 2 + 22 * severity), (SIZE, SIZE, 3))
    buffer = io.BytesIO()
    quality = int(rng.integers(round(85 - 60 * severity), 95))
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
