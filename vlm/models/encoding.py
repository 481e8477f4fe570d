"""Turns pictures into a model's inputs, with the task's question about each of them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from PIL import Image

from vlm.config.task import Task
from vlm.models import chat

if TYPE_CHECKING:
    import torch
    from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

# What a processor returns for the text; all else that it returns is for the pictures.
TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
_PIXELS, _PATCH_MASK = "pixel_values", "pixel_attention_mask"
_PART = 16 * 2**20  # bytes of pixels, as float32, that are computed at once: about as much as a CPU's cache holds


def encode(
    processor: "ProcessorMixin",
    task: Task,
    images: "Sequence[Image.Image | torch.Tensor]",
    dtype: "torch.dtype | None" = None,
    compact: bool = False,
) -> "BatchFeature":
    """The task's question about each picture as the model's inputs: a left-padded batch of tensors on the CPU.

    Pixels are in `dtype`, by default the processor's. The pictures go through the processor a few at a time, which
    makes no difference to the result: what it computes on the way to the pixels of a large batch is several times as
    large as they are, and takes longer to move to and from memory than to compute (benchmarks/feed.py).

    LFM2-VL's processor pads every tile to 1,024 patches. `compact` leaves out those that are padding in the whole
    batch, so that small pictures cost the vision tower less; it masks padding, so its features stay the same.
    """
    prompt = chat.prompt(processor, task)

    def asked(some: "Sequence[Image.Image | torch.Tensor]") -> "BatchFeature":
        inputs = processor(
            images=[[image] for image in some],
            text=[prompt] * len(some),
            padding=True,
            add_special_tokens=False,  # the chat template has written them
            return_tensors="pt",
        )
        if compact:
            _leave_out_padding(inputs)
        return inputs if dtype is None else inputs.to(dtype=dtype)  # integers stay what they are

    largest = max(image.width * image.height if isinstance(image, Image.Image) else image.numel() for image in images)
    at_once = max(1, _PART // (12 * largest))  # three colours, four bytes each
    parts = [asked(images[start : start + at_once]) for start in range(0, len(images), at_once)]
    return _joined(parts, processor.tokenizer.pad_token_id) or asked(images)


def _has_patches(inputs: "BatchFeature") -> bool:
    """Whether pixels are (tiles, patches, values) with a mask (tiles, patches), as those of LFM2-VL (SigLIP 2)."""
    mask = inputs.get(_PATCH_MASK)
    return mask is not None and mask.dim() == 2 and mask.shape == inputs[_PIXELS].shape[:2]


def _leave_out_padding(inputs: "BatchFeature") -> None:
    if _has_patches(inputs):
        most = int(inputs[_PATCH_MASK].sum(1).max())  # padding comes last
        inputs.update({name: inputs[name][:, :most].contiguous() for name in (_PIXELS, _PATCH_MASK)})


def _joined(parts: "Sequence[BatchFeature]", pad_token: int) -> "BatchFeature | None":
    """The inputs of all pictures in one batch.

    None if the shapes of the parts' pixels differ in a way that only the processor knows how to deal with.
    """
    import torch

    if len(parts) == 1:
        return parts[0]
    sides = {name: "left" for name in parts[0].keys() & set(TEXT_INPUTS)}
    if _has_patches(parts[0]):
        sides |= {_PIXELS: "right", _PATCH_MASK: "right"}
    joined = {}
    for name in parts[0]:
        values = [part[name] for part in parts]
        if name in sides:
            most = max(value.shape[1] for value in values)
            filler = pad_token if name == "input_ids" else 0
            values = [_padded(value, most, sides[name], filler) for value in values]
        if len({value.shape[1:] for value in values}) > 1:
            return None
        joined[name] = torch.cat(values)
    parts[0].update(joined)
    return parts[0]


def _padded(value: "torch.Tensor", length: int, side: str, filler: int) -> "torch.Tensor":
    """`value`, (rows, columns, ...), with `length` columns."""
    import torch

    missing = length - value.shape[1]
    if not missing:
        return value
    filling = value.new_full((len(value), missing, *value.shape[2:]), filler)
    return torch.cat([filling, value] if side == "left" else [value, filling], dim=1)


def blank(processor: "ProcessorMixin", task: Task, size: tuple[int, int]) -> "BatchFeature":
    """The inputs for a picture of `size`, (width, height) in pixels, of which `pixel_values` may have no content.

    The others depend on nothing but the picture's size.
    """
    import torch

    # A tensor without content, which torchvision's functions resize in no time
    picture = torch.empty(3, size[1], size[0], dtype=torch.uint8, device="meta")
    try:
        inputs = encode(processor, task, [picture])
    except Exception:  # an image processor that reads pixels; which exception it raises depends on the model
        inputs = None
    if inputs is None or any(value.is_meta for name, value in inputs.items() if name != "pixel_values"):
        inputs = encode(processor, task, [Image.new("RGB", size)])
    return inputs


def to_device(inputs: "Mapping[str, torch.Tensor]", model: "PreTrainedModel") -> "dict[str, torch.Tensor]":
    """Moves a batch to the model's device, and its pixels to the model's dtype.

    LFM2-VL reads `spatial_shapes` as numbers, for every tile; they stay on the CPU, because reading a number from a GPU
    waits until the GPU has finished all its work.
    """
    return {
        name: value
        if name == "spatial_shapes"
        else value.to(model.device, model.dtype if value.is_floating_point() else value.dtype, non_blocking=True)
        for name, value in inputs.items()
    }


def picture_inputs(inputs: "Mapping[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """The part of a model's inputs that its `get_image_features` takes."""
    return {name: value for name, value in inputs.items() if name not in TEXT_INPUTS}
