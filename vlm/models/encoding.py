"""Turns pictures into a model's inputs, with the task's question about each of them."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from PIL import Image

from vlm.config.task import Task
from vlm.models import chat, patches

if TYPE_CHECKING:
    import torch
    from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

# What a processor returns for the text; all else that it returns is for the pictures.
TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
# Bytes of the given pictures, as float32, that go through the processor at once: about as much as a CPU's cache holds
_PART = 16 * 2**20

# By processor, and by all that the text's tokens depend on with LFM2-VL: its settings, the prompt, the picture's layout
_texts: "WeakKeyDictionary[ProcessorMixin, dict[Any, dict[str, torch.Tensor]]]" = WeakKeyDictionary()


def encode(
    processor: "ProcessorMixin",
    task: Task,
    images: Sequence[Image.Image],
    dtype: "torch.dtype | None" = None,
    empty: patches.Empty | None = None,
) -> "BatchFeature":
    """The task's question about each picture as the model's inputs: a left-padded batch of tensors on the CPU.

    `images` are RGB, at least one. By default the batch is complete, and its pixels have the processor's dtype. Given
    the model's `dtype`, the pixels have that one, or, for LFM2-VL, they are still bytes, and `to_device` completes the
    batch. `empty` makes the tensor for those bytes, by default torch's function of that name. Pixels are those of the
    processor, without patches that are padding in the whole batch (see vlm.models.patches.leave_out_padding).
    """
    import torch
    from transformers import BatchFeature

    prompt = chat.prompt(processor, task)
    made = patches.of(processor)
    if made is None:
        return _in_parts(processor, prompt, images, dtype)
    pictures, layouts = made(images, empty)
    if dtype is None:
        pictures = patches.normalised(pictures, torch.float32)
    sizes = [image.size for image in images]
    texts = [_text(processor, prompt, made, *of_one) for of_one in zip(sizes, layouts, strict=True)]
    return BatchFeature(_padded_texts(texts, processor.tokenizer.pad_token_id) | pictures)


def lengths(processor: "ProcessorMixin", task: Task, sizes: Collection[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """By size, (width, height) of a picture: the number of tokens in the prompt, including the picture's."""
    prompt = chat.prompt(processor, task)
    made = patches.of(processor)
    if made is None:
        return {size: _blank(processor, prompt, size)["input_ids"].shape[1] for size in sizes}
    return {size: len(_text(processor, prompt, made, size, made.layout(size))["input_ids"]) for size in sizes}


def _text(
    processor: "ProcessorMixin", prompt: str, made: patches.Patches, size: tuple[int, int], layout: patches.Layout
) -> "dict[str, torch.Tensor]":
    """The text's tokens and what belongs to them, (tokens,) each, for LFM2-VL and a picture of `size`."""
    known = _texts.setdefault(processor, {})
    key = (tuple(made.settings.values()), prompt, layout.key)
    if key not in known:
        inputs = _blank(processor, prompt, size)
        known[key] = {name: inputs[name][0] for name in TEXT_INPUTS if name in inputs}
    return known[key]


def _by_processor(
    processor: "ProcessorMixin", prompt: str, images: "Sequence[Image.Image | torch.Tensor]", padding: bool = True
) -> "BatchFeature":
    return processor(
        images=[[image] for image in images],
        text=[prompt] * len(images),
        padding=padding,
        add_special_tokens=False,  # the chat template has written them
        return_tensors="pt",
    )


def _padded_texts(texts: "Sequence[Mapping[str, torch.Tensor]]", pad_token: int) -> "dict[str, torch.Tensor]":
    """The rows in one batch, padded on the left."""
    from torch.nn.utils.rnn import pad_sequence

    return {
        name: pad_sequence(
            [text[name] for text in texts],
            batch_first=True,
            padding_value=pad_token if name == "input_ids" else 0,
            padding_side="left",
        )
        for name in texts[0]
    }


def _in_parts(
    processor: "ProcessorMixin", prompt: str, images: Sequence[Image.Image], dtype: "torch.dtype | None"
) -> "BatchFeature":
    """The processor's results for a few pictures at a time, joined: the same as for all at once.

    For a large batch the processor's intermediate values are several times as large as the pixels, and moving them to
    and from memory takes longer than computing them.
    """

    def asked(some: Sequence[Image.Image]) -> "BatchFeature":
        inputs = _by_processor(processor, prompt, some)
        patches.leave_out_padding(inputs)
        return inputs if dtype is None else inputs.to(dtype=dtype)  # integers stay what they are

    at_once = max(1, _PART // (4 * 3 * max(image.width * image.height for image in images)))
    parts: list[BatchFeature] = []
    for start in range(0, len(images), at_once):
        parts.append(asked(images[start : start + at_once]))
        if not _can_be_joined(parts[0], parts[-1]):
            return asked(images)
    return parts[0] if len(parts) == 1 else joined(parts, processor.tokenizer.pad_token_id)


def _padded_sides(inputs: "Mapping[str, torch.Tensor]") -> dict[str, str]:
    """The side on which parts of a batch are padded to the same number of columns, by name of the input."""
    sides = {name: "left" for name in inputs.keys() & set(TEXT_INPUTS)}
    return sides | (dict.fromkeys(patches.PIXELS_AND_MASK, "right") if patches.padded(inputs) else {})


def _can_be_joined(first: "BatchFeature", other: "BatchFeature") -> bool:
    """False if the parts' pixels differ in shape in a way that only the processor knows how to deal with."""
    sides = _padded_sides(first)
    fixed = {name: 2 if name in sides else 1 for name in first}  # the first dimension that has to be the same
    return all(first[name].shape[start:] == other[name].shape[start:] for name, start in fixed.items())


def joined(parts: "Sequence[Mapping[str, torch.Tensor]]", pad_token: int) -> "BatchFeature":
    """One batch of several, as `encode` pads it: tokens on the left, patches on the right."""
    import torch
    from transformers import BatchFeature

    sides, batch = _padded_sides(parts[0]), {}
    for name in parts[0]:
        values = [part[name] for part in parts]
        if name in sides:
            most = max(value.shape[1] for value in values)
            filler = pad_token if name == "input_ids" else 0
            values = [_padded(value, most, sides[name], filler) for value in values]
        batch[name] = torch.cat(values)
    return BatchFeature(batch)


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

    The others are those of `encode` for any picture of this size.
    """
    inputs = _blank(processor, chat.prompt(processor, task), size)
    patches.leave_out_padding(inputs)
    return inputs


def _blank(processor: "ProcessorMixin", prompt: str, size: tuple[int, int]) -> "BatchFeature":
    import torch

    # A tensor without content, which torchvision's functions resize in no time
    picture = torch.empty(3, size[1], size[0], dtype=torch.uint8, device="meta")
    try:
        # A tokenizer remembers whether its last call padded, and is saved with that.
        inputs = _by_processor(processor, prompt, [picture], padding=False)
    except Exception:  # an image processor that reads pixels; which exception it raises depends on the model
        inputs = None
    if inputs is None or any(value.is_meta for name, value in inputs.items() if name != "pixel_values"):
        inputs = _by_processor(processor, prompt, [Image.new("RGB", size)], padding=False)
    return inputs


def to_device(inputs: "Mapping[str, torch.Tensor]", model: "PreTrainedModel") -> "dict[str, torch.Tensor]":
    """Moves a batch to the model's device, and turns its pixels into the model's dtype.

    LFM2-VL reads `spatial_shapes` as numbers, for every tile; they stay on the CPU, because reading a number from a GPU
    waits until the GPU has finished all its work.
    """
    moved = {}
    for name, value in inputs.items():
        dtype = model.dtype if value.is_floating_point() and name not in patches.SCALE else value.dtype
        to_cpu = name == "spatial_shapes"
        moved[name] = value if to_cpu else value.to(model.device, dtype, non_blocking=True)
    return patches.normalised(moved, model.dtype) if moved.keys() >= set(patches.SCALE) else moved


def picture_inputs(inputs: "Mapping[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """The part of a model's inputs that its `get_image_features` takes."""
    return {name: value for name, value in inputs.items() if name not in TEXT_INPUTS}
