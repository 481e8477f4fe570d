"""Seven common corruptions of pictures, each at severities 1 (mild) to 5 (strong).

Names, definitions and constants are those of D. Hendrycks and T. Dietterich, "Benchmarking Neural Network Robustness to
Common Corruptions and Perturbations", ICLR 2019 (ImageNet-C; spatter is one of its four extra corruptions). Their
constants are for pictures of 224 x 224 pixels; here, too, they are applied at the picture's own size, whatever it is.
docs/robustness.md says why no library does this, and compares the results with one.
"""

import hashlib
import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

# Standard deviation of the noise; fraction of the values that are replaced; factor on the distance from the mean;
# JPEG quality; factor on width and height
_GAUSSIAN = (0.08, 0.12, 0.18, 0.26, 0.38)
_IMPULSE = (0.03, 0.06, 0.09, 0.17, 0.27)
_CONTRAST = (0.4, 0.3, 0.2, 0.1, 0.05)
_QUALITY = (25, 18, 15, 10, 7)
_PIXELATE = (0.6, 0.5, 0.4, 0.3, 0.25)
# Radius and standard deviation in pixels
_MOTION = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))
# Mean, standard deviation, smoothing in pixels and threshold of the liquid, and what it is; then for water the strength
# of its shine, for mud the smoothing of its edges in pixels
_SPATTER = (
    (0.65, 0.3, 4, 0.69, "water", 0.6),
    (0.65, 0.3, 3, 0.68, "water", 0.6),
    (0.65, 0.3, 2, 0.68, "water", 0.5),
    (0.65, 0.3, 1, 0.65, "mud", 1.5),
    (0.67, 0.4, 1, 0.65, "mud", 1.5),
)
_WATER, _MUD = np.array([175, 238, 238]) / 255, np.array([63, 42, 20]) / 255  # RGB


def corrupted(image: Image.Image, corruption: str, severity: int, id_: str) -> Image.Image:
    """The picture, RGB of any size, with a corruption at a severity from 1 to 5. The result has the same size.

    What is random (noise, direction, drops) is drawn from a generator that is seeded with the sample's id, the
    corruption and the severity: it depends neither on the order of the samples nor on the machine.
    Raises KeyError for an unknown corruption.
    """
    function, constants = CORRUPTIONS[corruption]
    seed = hashlib.sha256(f"{id_}\n{corruption}\n{severity}".encode()).digest()
    return function(image, constants[severity - 1], np.random.default_rng(int.from_bytes(seed)))


def _contrast(image: Image.Image, factor: float, rng: np.random.Generator) -> Image.Image:
    pixels = _pixels(image)
    mean = pixels.mean(axis=(0, 1))
    return _image((pixels - mean) * factor + mean)


def _gaussian_noise(image: Image.Image, deviation: float, rng: np.random.Generator) -> Image.Image:
    pixels = _pixels(image)
    return _image(pixels + deviation * rng.standard_normal(pixels.shape, np.float32))


def _impulse_noise(image: Image.Image, fraction: float, rng: np.random.Generator) -> Image.Image:
    """Salt and pepper: replaces a fraction of the values, of each channel independently, by 0 or 1."""
    pixels = _pixels(image)
    drawn = rng.random(pixels.shape, np.float32)
    pixels[drawn < fraction] = 1
    pixels[drawn < fraction / 2] = 0
    return _image(pixels)


def _jpeg_compression(image: Image.Image, quality: int, rng: np.random.Generator) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def _motion_blur(image: Image.Image, shape: tuple[int, float], rng: np.random.Generator) -> Image.Image:
    """A one-sided Gaussian blur along a line of 2 * radius + 1 pixels, in a direction within 45 degrees of horizontal.

    Beyond the border, the picture goes on with the pixels of its edge.
    """
    radius, deviation = shape
    angle = math.radians(rng.uniform(-45, 45))
    length = 2 * radius
    weights = np.exp(-(np.arange(length + 1) ** 2) / (2 * deviation**2))
    weights /= weights.sum()
    padded = np.pad(_pixels(image), ((length, length), (0, length), (0, 0)), mode="edge")
    blurred = np.zeros((image.height, image.width, 3), np.float32)
    for step, weight in enumerate(weights.tolist()):
        top, left = length + round(step * math.sin(angle)), round(step * math.cos(angle))
        blurred += weight * padded[top : top + image.height, left : left + image.width]
    return _image(blurred)


def _pixelate(image: Image.Image, factor: float, rng: np.random.Generator) -> Image.Image:
    size = max(1, int(image.width * factor)), max(1, int(image.height * factor))
    return image.resize(size, Image.Resampling.BOX).resize(image.size, Image.Resampling.NEAREST)


def _spatter(image: Image.Image, constants: tuple, rng: np.random.Generator) -> Image.Image:
    """Drops on the lens, where smoothed noise exceeds a threshold: of water, which is bright, or of mud, which covers.

    Mud is as defined in the benchmark. Its water depends on functions of OpenCV (Canny's edges, an equalised
    histogram); ours has the same drops and colour, and shines where a drop's surface rises to the upper left.
    """
    mean, deviation, smoothing, threshold, kind, last = constants
    pixels = _pixels(image)
    liquid = rng.normal(mean, deviation, pixels.shape[:2])
    liquid = ndimage.gaussian_filter(liquid, smoothing, mode="nearest")
    drops = liquid > threshold
    if kind == "mud":
        cover = ndimage.gaussian_filter(drops.astype(np.float32), last, mode="nearest")
        cover[cover < 0.8] = 0
        cover = cover[..., np.newaxis]
        return _image(pixels * (1 - cover) + _MUD * cover)
    thickness = np.minimum(ndimage.distance_transform_edt(drops), 20)
    slope = ndimage.correlate(thickness, np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]), mode="nearest")
    shine = drops * ndimage.uniform_filter(np.maximum(slope, 0), 3, mode="nearest")
    if shine.any():
        pixels += last * (shine / shine.max())[..., np.newaxis] * _WATER
    return _image(pixels)


def _pixels(image: Image.Image) -> np.ndarray:
    """(height, width, 3), float32, 0 to 1."""
    return np.asarray(image.convert("RGB"), np.float32) / 255


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(pixels.clip(0, 1) * 255).astype(np.uint8))


# By name: the function, and its constants by severity
CORRUPTIONS: dict[str, tuple[Callable[[Image.Image, Any, np.random.Generator], Image.Image], tuple]] = {
    "contrast": (_contrast, _CONTRAST),
    "gaussian_noise": (_gaussian_noise, _GAUSSIAN),
    "impulse_noise": (_impulse_noise, _IMPULSE),
    "jpeg_compression": (_jpeg_compression, _QUALITY),
    "motion_blur": (_motion_blur, _MOTION),
    "pixelate": (_pixelate, _PIXELATE),
    "spatter": (_spatter, _SPATTER),
}
