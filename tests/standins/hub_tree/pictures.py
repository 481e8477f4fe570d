"""Pictures of invented cars, pets and people, from which a class can be learned."""

import colorsys
import io
import math
import random

import numpy as np
from PIL import Image, ImageDraw

from hub_tree.classes import ACTIONS

_WIDTH, _HEIGHT = 96, 72  # of a typical picture
_Color = tuple[int, int, int]


def encode(picture: Image.Image, name: str, png: bool = False) -> dict:
    """A cell of a column of images."""
    buffer = io.BytesIO()
    if png or picture.mode in ("RGBA", "P"):
        picture.save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": f"{name}.png"}
    picture.save(buffer, "JPEG", quality=88)
    return {"bytes": buffer.getvalue(), "path": f"{name}.jpg"}


class Painter:
    """Draws pictures that depend on the seed only."""

    def __init__(self, seed: str) -> None:
        self.rng = random.Random(seed)

    def car(self, maker: int, model: int) -> Image.Image:
        """Body colour and badge tell the maker, wheels and roof the model."""
        picture = self._canvas(_color(self.rng.random(), 0.15, self.rng.uniform(0.5, 0.9)))
        draw, (w, h) = ImageDraw.Draw(picture), picture.size
        dx, dy = self.rng.uniform(-0.06, 0.06) * w, self.rng.uniform(-0.06, 0.06) * h
        hue = maker * 0.618034
        body = _color(hue, 0.55 + 0.45 * (maker % 2), 0.9 - 0.35 * (maker // 2 % 2))
        draw.rectangle([0.1 * w + dx, 0.45 * h + dy, 0.9 * w + dx, 0.75 * h + dy], fill=body)
        roof = 0.12 + 0.04 * (model % 5)
        corners = [(0.25, 0.45), (0.25 + roof, 0.22), (0.65, 0.22), (0.8, 0.45)]
        draw.polygon([(x * w + dx, y * h + dy) for x, y in corners], fill=body)
        radius = (0.08 + 0.015 * (model % 4)) * min(w, h)
        for x in (0.28, 0.72):
            _disc(draw, x * w + dx, 0.75 * h + dy, radius, (25, 25, 25))
        x, y, size, sides = 0.5 * w + dx, 0.58 * h + dy, 0.14 * min(w, h), 3 + maker % 7
        angles = [maker + 2 * math.pi * i / sides for i in range(sides)]
        badge = [(x + size * math.cos(angle), y + size * math.sin(angle)) for angle in angles]
        draw.polygon(badge, fill=_color(hue + 0.5, 0.9, 0.95))
        return picture

    def pet(self, dog: bool) -> Image.Image:
        """A head: a dog's ears hang, a cat's are pointed."""
        picture = self._canvas(_color(self.rng.random(), 0.3, 0.85))
        draw, (w, h) = ImageDraw.Draw(picture), picture.size
        fur = _color(0.07 if dog else 0.6, 0.6 if dog else 0.15, self.rng.uniform(0.4, 0.7))
        x, y, r = self.rng.uniform(0.4, 0.6) * w, self.rng.uniform(0.45, 0.6) * h, 0.28 * min(w, h)
        for side in (-1, 1):
            if dog:
                ear = [x + side * r - 0.35 * r, y - 0.5 * r, x + side * r + 0.35 * r, y + 0.9 * r]
                draw.ellipse(ear, fill=tuple(c // 2 for c in fur))
            else:
                corners = [(0.9, -0.2), (0.8, -1.5), (0.2, -0.8)]
                draw.polygon([(x + side * across * r, y + down * r) for across, down in corners], fill=fur)
        _disc(draw, x, y, r, fur)
        for side in (-1, 1):
            _disc(draw, x + side * 0.4 * r, y - 0.3 * r, 3, (10, 10, 10))
        return picture

    def person(self, action: int) -> Image.Image:
        """A stick figure whose limbs and background tell the action."""
        picture = self._canvas(_color(action / len(ACTIONS), 0.45, 0.8))
        draw, (w, h) = ImageDraw.Draw(picture), picture.size
        s, x, y = min(w, h), self.rng.uniform(0.4, 0.6) * w, self.rng.uniform(0.45, 0.55) * h
        ink, width = (20, 20, 40), max(2, s // 24)
        arm, leg = math.pi * (0.1 + 0.8 * (action % 5) / 4), math.pi * (0.1 + 0.3 * (action // 5) / 2)
        _disc(draw, x, y - 0.33 * s, 0.09 * s, ink)
        draw.line([(x, y - 0.24 * s), (x, y + 0.1 * s)], fill=ink, width=width)
        for joint, length, angle in ((y - 0.16 * s, 0.25 * s, arm), (y + 0.1 * s, 0.3 * s, leg)):
            for side in (-1, 1):
                end = (x + side * length * math.sin(angle), joint + length * math.cos(angle))
                draw.line([(x, joint), end], fill=ink, width=width)
        return picture

    def _canvas(self, background: _Color) -> Image.Image:
        """Of a varied size, with a little noise."""
        scale = self.rng.choice([0.7, 0.85, 1.0, 1.0, 1.2, 1.5])
        ratio = self.rng.choice([0.75, 1.0, 1.0, 1.33])
        w, h = max(24, int(_WIDTH * scale * ratio)), max(24, int(_HEIGHT * scale / ratio))
        noise = np.random.default_rng(self.rng.randrange(1 << 30)).integers(-14, 15, (h, w, 1))
        return Image.fromarray(np.clip(np.array(background) + noise, 0, 255).astype(np.uint8), "RGB")


def _color(hue: float, saturation: float, value: float) -> _Color:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return int(255 * red), int(255 * green), int(255 * blue)


def _disc(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, fill: _Color) -> None:
    draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=fill)
