"""LFM2-VL's pictures as patches: the same values as by transformers' processor, in a fraction of its time.

The sizes and the resizing are the processor's own. Most of its time goes elsewhere: it keeps the colours apart, so that
it has to gather the values of a patch one by one, and it copies them four times as 32-bit numbers. Here a picture's
rows stay as they were decoded, and the bytes of a patch are written once (benchmarks/feed.py measures both). In an
evaluation they become numbers on the model's device: that takes a GPU next to no time, and half as much goes to it.
"""

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import torch
    from transformers import ProcessorMixin

Empty = Callable[..., "torch.Tensor"]  # as torch.empty: makes a tensor of a shape and `dtype`
# Settings of the image processor that `resize_and_split` takes
_SETTINGS = (
    *("downsample_factor", "min_tiles", "max_tiles", "use_thumbnail", "min_image_tokens", "max_image_tokens"),
    *("encoder_patch_size", "tile_size", "max_pixels_tolerance", "resample"),
)
# Inputs for `normalised`, not for the model: the mean and the standard deviation of each value of a patch, as bytes
SCALE = ("pixel_mean", "pixel_std")
PIXELS_AND_MASK = ("pixel_values", "pixel_attention_mask")
# Bytes of 32-bit numbers that are computed at once: on a CPU less than its cache holds; measured, see docs/log.md. On a
# GPU as much as it does not miss, so that few kernels are launched.
_CPU_PART, _GPU_PART = 4 * 2**20, 256 * 2**20
_MOST_LAYOUTS = 4096  # remembered; random crops have a size of their own each
# Width and height of the pictures on which the two are compared: enlarged, as it is, and cut into tiles
_TRIED = ((70, 40), (320, 256), (1100, 720))


class Layout(NamedTuple):
    """What becomes of a picture of a certain size."""

    resized: tuple[tuple[int, int], ...]  # height and width to which it is resized
    grids: tuple[tuple[int, int], ...]  # for each of them: into how many rows and columns of tiles it is cut
    key: tuple[int, ...]  # all that the number of its tokens depends on: rows, columns, height and width when whole


class Patches:
    """Does the work of one image processor of LFM2-VL."""

    def __init__(self, image_processor: Any) -> None:
        import torch

        self._image_processor = image_processor
        self._size = image_processor.encoder_patch_size
        colours = [torch.tensor(image_processor.image_mean), torch.tensor(image_processor.image_std)]
        # As transformers does it: bytes minus the mean, divided by the standard deviation, both as bytes
        scale = [(colour * (1.0 / image_processor.rescale_factor)).repeat(self._size**2) for colour in colours]
        self._scale = dict(zip(SCALE, scale, strict=True))
        self._layouts: dict[tuple, Layout] = {}  # by the picture's size and the settings

    def __call__(
        self, images: Sequence[Image.Image], empty: Empty | None = None
    ) -> "tuple[dict[str, torch.Tensor], list[Layout]]":
        """The inputs of the vision tower for RGB pictures, which `normalised` completes; and each picture's layout.

        pixel_values (tiles, patches, values of a patch), bytes; pixel_attention_mask (tiles, patches); spatial_shapes
        (tiles, 2), the rows and columns of patches; and `SCALE`, (values of a patch) each. All tiles get as many
        patches as the largest has; what a tile lacks is masked, and its bytes mean nothing. The pixels are in the
        tensor that `empty` makes, by default torch's function of that name.
        """
        import torch

        layouts = [self.layout(image.size) for image in images]
        shapes = [shape for layout in layouts for shape in self._shapes(layout)]
        most = max(rows * columns for rows, columns in shapes)
        pixels = (empty or torch.empty)((len(shapes), most, len(self._scale[SCALE[0]])), dtype=torch.uint8)
        mask = torch.zeros(len(shapes), most, dtype=torch.int32)
        for number, (rows, columns) in enumerate(shapes):
            mask[number, : rows * columns] = 1
        first = 0
        for image, layout in zip(images, layouts, strict=True):
            for of_tiles in self._tiles(image, layout):
                tiles, patches = of_tiles.shape[0] * of_tiles.shape[1], of_tiles.shape[2] * of_tiles.shape[3]
                pixels[first : first + tiles, :patches].view(of_tiles.shape).copy_(of_tiles)
                first += tiles
        inputs = {"pixel_values": pixels, "pixel_attention_mask": mask, "spatial_shapes": torch.tensor(shapes)}
        return inputs | self._scale, layouts

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that determine the sizes and the number of tiles."""
        found = {name: getattr(self._image_processor, name) for name in _SETTINGS}
        return found if self._image_processor.do_image_splitting else found | {"min_tiles": 1, "max_tiles": 1}

    def layout(self, size: tuple[int, int]) -> Layout:
        """The layout of a picture of `size`, (width, height), by the processor's own rules."""
        import torch

        settings = self.settings
        key = (size, *settings.values())
        if key not in self._layouts:
            if len(self._layouts) == _MOST_LAYOUTS:
                self._layouts.clear()
            # A picture without content, which is resized and cut in no time
            blank = torch.empty(1, 3, size[1], size[0], dtype=torch.uint8, device="meta")
            (tiles,), (rows,), (columns,), (whole,) = self._image_processor.resize_and_split(blank, **settings)
            cut = rows * columns
            height, width = tiles[0].shape[1:]
            others = tuple((tile.shape[1], tile.shape[2]) for tile in tiles[cut:])  # the thumbnail, if there is one
            resized, grids = ((rows * height, columns * width), *others), ((rows, columns), *((1, 1) for _ in others))
            self._layouts[key] = Layout(resized, grids, (rows, columns, *whole))
        return self._layouts[key]

    def _shapes(self, layout: Layout) -> list[tuple[int, int]]:
        """The rows and columns of patches of every tile."""
        found = []
        for (height, width), (rows, columns) in zip(layout.resized, layout.grids, strict=True):
            found += [(height // rows // self._size, width // columns // self._size)] * (rows * columns)
        return found

    def _tiles(self, image: Image.Image, layout: Layout) -> "Iterator[torch.Tensor]":
        """Yields, for each size to which the picture is resized, the bytes of its tiles, cut into patches:

        (rows of tiles, columns of tiles, rows of patches, columns of patches, rows of pixels, values in such a row)
        """
        import torch
        from transformers.image_utils import SizeDict

        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        side = self._size
        for (height, width), (rows, columns) in zip(layout.resized, layout.grids, strict=True):
            resized = self._image_processor.resize(
                pixels, SizeDict(height=height, width=width), resample=self._image_processor.resample
            )
            lines = resized[0].permute(1, 2, 0).contiguous()
            cut = lines.view(rows, height // rows // side, side, columns, width // columns // side, side * 3)
            yield cut.permute(0, 3, 1, 4, 2, 5)


def normalised(inputs: "Mapping[str, torch.Tensor]", dtype: "torch.dtype") -> "dict[str, torch.Tensor]":
    """The model's inputs, with the processor's pixel values in `dtype`, on the device on which `inputs` are.

    `inputs` are those of `Patches`, and perhaps others, which stay as they are; spatial_shapes are on the CPU. What is
    masked becomes 0.
    """
    import torch

    pixels, mean, std = (inputs[name] for name in ("pixel_values", *SCALE))
    values = torch.empty(pixels.shape, dtype=dtype, device=pixels.device)
    at_once = max(1, (_CPU_PART if pixels.device.type == "cpu" else _GPU_PART) // (4 * pixels[0].numel()))
    for target, of_bytes in zip(values.split(at_once), pixels.split(at_once), strict=True):
        torch.div(of_bytes - mean, std, out=target)
    for tile, count in zip(values, inputs["spatial_shapes"].prod(1).tolist(), strict=True):
        if count < len(tile):
            tile[count:] = 0
    return {name: value for name, value in inputs.items() if name not in SCALE} | {"pixel_values": values}


def padded(inputs: "Mapping[str, torch.Tensor]") -> bool:
    """Whether pixels are (tiles, patches, ...) with a mask (tiles, patches), as those of LFM2-VL (SigLIP 2)."""
    pixels, mask = (inputs.get(name) for name in PIXELS_AND_MASK)
    return mask is not None and mask.dim() == 2 and mask.shape == pixels.shape[:2]


def leave_out_padding(inputs: "MutableMapping[str, torch.Tensor]") -> None:
    """Leaves out the patches that are padding in all tiles.

    LFM2-VL's processor pads all tiles to the same number of patches, 1,024 in the published models. The vision tower
    masks padding, so its features stay the same, but padding takes its time.
    """
    if padded(inputs):
        most = int(inputs[PIXELS_AND_MASK[1]].sum(1).max())  # padding comes last
        inputs.update({name: inputs[name][:, :most].contiguous() for name in PIXELS_AND_MASK})


def of(processor: "ProcessorMixin") -> Patches | None:
    """Patches for this processor; None if it is not LFM2-VL's, or if its results are not reproduced exactly.

    The comparison protects from other versions of transformers and from settings that nobody has thought of. It is made
    once for each image processor, of which later only `Patches.settings` may change, and not the size of a patch.
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
        leave_out_padding(expected)
        made = Patches(image_processor)
        found = normalised(made(images)[0], torch.float32)
    except (
        AttributeError,
        ImportError,
        RuntimeError,
        TypeError,
        ValueError,
    ):  # settings or a version with which it is different
        return None
    same = expected.keys() == found.keys() and all(
        expected[name].dtype == found[name].dtype and torch.equal(expected[name], found[name]) for name in found
    )
    return made if same else None
