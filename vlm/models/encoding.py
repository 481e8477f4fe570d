"""Turns pictures into a model's inputs, with the task's question about each of them."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from PIL import Image

from vlm.config.task import Task
from vlm.models import chat, patches

if TYPE_CHECKING:
    import torch
    from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

# What a processor returns for the text; all else that it returns is for the pictures.
TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
_SIZES = 4096  # of pictures, whose prompts are remembered


def encode(
    processor: "ProcessorMixin",
    task: Task,
    images: "Sequence[Image.Image]",
    dtype: "torch.dtype | None" = None,
    compact: bool = False,
) -> "BatchFeature":
    """The task's question about each picture as the model's inputs: a left-padded batch of tensors on the CPU.

    `images` are RGB, at least one. Pixels are in `dtype`, by default the processor's. LFM2-VL's processor pads every
    picture or tile to the largest number of patches, 1,024 in the published models. `compact` leaves out patches that
    are padding in the whole batch, so that small pictures cost the vision tower less. It masks padding, so its features
    stay the same.
    """
    from transformers import BatchFeature

    prompt = chat.prompt(processor, task)
    pictures = patches.of(processor)
    if pictures:
        settings = tuple(pictures.settings.values())
        texts = [_text(processor, settings, prompt, image.size) for image in images]
        return BatchFeature(_padded(texts, processor.tokenizer.pad_token_id) | pictures(images, dtype, compact))
    inputs = _by_processor(processor, prompt, images)
    return inputs if dtype is None else inputs.to(dtype=dtype)  # integers stay what they are


def _by_processor(
    processor: "ProcessorMixin", prompt: str, images: "Sequence[Image.Image | torch.Tensor]"
) -> "BatchFeature":
    return processor(
        images=[[image] for image in images],
        text=[prompt] * len(images),
        padding=True,
        add_special_tokens=False,  # the chat template has written them
        return_tensors="pt",
    )


@lru_cache(_SIZES)
def _text(
    processor: "ProcessorMixin", settings: tuple, prompt: str, size: tuple[int, int]
) -> "dict[str, torch.Tensor]":
    """The inputs of one row for the text. They depend on the picture's size and the processor's `settings`."""
    inputs = _blank(processor, prompt, size)
    return {name: inputs[name][0] for name in TEXT_INPUTS if name in inputs}


def _padded(texts: "Sequence[Mapping[str, torch.Tensor]]", pad_token: int) -> "dict[str, torch.Tensor]":
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


def blank(processor: "ProcessorMixin", task: Task, size: tuple[int, int]) -> "BatchFeature":
    """The inputs for a picture of `size`, (width, height) in pixels, of which `pixel_values` may have no content.

    The others depend on nothing but the picture's size.
    """
    return _blank(processor, chat.prompt(processor, task), size)


def _blank(processor: "ProcessorMixin", prompt: str, size: tuple[int, int]) -> "BatchFeature":
    import torch

    # A tensor without content, which torchvision's functions resize in no time
    picture = torch.empty(3, size[1], size[0], dtype=torch.uint8, device="meta")
    try:
        inputs = _by_processor(processor, prompt, [picture])
    except Exception:  # an image processor that reads pixels; which exception it raises depends on the model
        inputs = None
    if inputs is None or any(value.is_meta for name, value in inputs.items() if name != "pixel_values"):
        inputs = _by_processor(processor, prompt, [Image.new("RGB", size)])
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
