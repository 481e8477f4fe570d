"""LFM2-VL's pictures as patches: the same bytes as by transformers' processor, in less than half of its time.

The sizes and the resizing are the processor's own. Most of its time goes elsewhere: it keeps the colours apart, so that
it has to gather the values of a patch one by one, and it copies them four times as 32-bit numbers. Here a picture's
rows stay as they were decoded, and the values of a patch are written once (benchmarks/feed.py measures both).
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import torch
    from transformers import ProcessorMixin

# Settings of the image processor that `resize_and_split` takes
_SETTINGS = (
    *("downsample_factor", "min_tiles", "max_tiles", "use_thumbnail", "min_image_tokens", "max_image_tokens"),
    *("encoder_patch_size", "tile_size", "max_pixels_tolerance", "resample"),
)
# Width and height of the pictures on which the two are compared: enlarged, as it is, and cut into tiles
_TRIED = ((70, 40), (320, 256), (1100, 720))


class Patches:
    """Does the work of one image processor of LFM2-VL."""

    def __init__(self, image_processor: Any) -> None:
        import torch

        self._image_processor = image_processor
        self._size = image_processor.encoder_patch_size
        colours = [torch.tensor(image_processor.image_mean), torch.tensor(image_processor.image_std)]
        # As transformers does it: bytes minus the mean, divided by the standard deviation, both as bytes
        self._mean, self._std = (
            (colour * (1.0 / image_processor.rescale_factor)).repeat(self._size**2) for colour in colours
        )

    def __call__(
        self, images: Sequence[Image.Image], dtype: "torch.dtype | None" = None, compact: bool = False
    ) -> "tuple[dict[str, torch.Tensor], list[tuple[int, ...]]]":
        """The inputs of the vision tower for RGB pictures, with pixels in `dtype` (by default float32); and the layout
        of each picture, on which the number of its tokens depends: rows and columns of tiles, and its size when whole.

        pixel_values (tiles, patches, values of a patch), pixel_attention_mask (tiles, patches), and spatial_shapes
        (tiles, 2), the rows and columns of patches. Tiles have as many patches as the processor allows at most, or,
        with `compact`, as the largest of them; what a tile lacks is 0 and masked.
        """
        import torch

        cut = [self._cut(image) for image in images]
        tiles = [tile for of_image, _ in cut for tile in of_image]
        shapes = [(tile.shape[1] // self._size, tile.shape[2] // self._size) for tile in tiles]
        counts = [rows * columns for rows, columns in shapes]
        most = max(counts) if compact else self._most_patches()
        pixels = torch.empty(len(tiles), most, len(self._mean), dtype=dtype or torch.float32)
        mask = torch.zeros(len(tiles), most, dtype=torch.int32)
        for number, (tile, count) in enumerate(zip(tiles, counts, strict=True)):
            pixels[number, :count] = self._patches(tile).to(torch.float32).sub_(self._mean).div_(self._std)
            pixels[number, count:] = 0
            mask[number, :count] = 1
        inputs = {"pixel_values": pixels, "pixel_attention_mask": mask, "spatial_shapes": torch.tensor(shapes)}
        return inputs, [layout for _, layout in cut]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that determine the sizes and the number of tiles."""
        found = {name: getattr(self._image_processor, name) for name in _SETTINGS}
        return found if self._image_processor.do_image_splitting else found | {"min_tiles": 1, "max_tiles": 1}

    def _cut(self, image: Image.Image) -> "tuple[list[torch.Tensor], tuple[int, ...]]":
        """The picture in the sizes that the vision tower sees: (3, height, width) each, as bytes; and its layout."""
        import torch

        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        (tiles,), (rows,), (columns,), (size,) = self._image_processor.resize_and_split(pixels[None], **self.settings)
        return tiles, (rows, columns, *size)

    def _patches(self, tile: "torch.Tensor") -> "torch.Tensor":
        """The patches of a tile from left to right and from top to bottom: (patches, values)."""
        import torch

        colours, height, width = tile.shape
        size = self._size
        pixels = tile.permute(1, 2, 0)
        if not pixels.is_contiguous():  # of a picture that was cut; stacking takes half the time of copying
            pixels = torch.stack(tile.unbind(), dim=-1)
        rows = pixels.reshape(height // size, size, width // size, size * colours)
        return rows.transpose(1, 2).reshape(-1, size * size * colours)

    def _most_patches(self) -> int:
        made_by = self._image_processor
        most = made_by.max_image_tokens * made_by.downsample_factor**2
        return max(most, (made_by.tile_size // self._size) ** 2) if made_by.do_image_splitting else most


def of(processor: "ProcessorMixin") -> Patches | None:
    """Patches for this processor; None if it is not LFM2-VL's, or if its results are not reproduced exactly.

    The comparison protects from other versions of transformers and from settings that nobody has thought of. It is made
    once for each image processor, of which only `Patches.settings` may change later.
    """
    return _tried(processor.image_processor)


@lru_cache(8)
def _tried(image_processor: Any) -> Patches | None:
    import torch

    if not type(image_processor).__name__.startswith("Lfm2VlImageProcessor"):
        return None
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)) for width, height in _TRIED]
    try:
        nested = [[image] for image in images]
        expected = image_processor(nested, return_tensors="pt", return_row_col_info=False)  # which is for the text
        made = Patches(image_processor)
        found, _ = made(images)
    except (AttributeError, RuntimeError, TypeError, ValueError):  # settings or a version with which it is different
        return None
    same = expected.keys() == found.keys() and all(
        expected[name].dtype == found[name].dtype and torch.equal(expected[name], found[name]) for name in found
    )
    return made if same else None
