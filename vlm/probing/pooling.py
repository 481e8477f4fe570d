"""One vector for each picture: mean and maximum of the vision tower's last hidden state over the picture's patches.

docs/baselines.md compares this with other ways of pooling.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from vlm.models import encoding, loading

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class NoFeatures(Exception):
    """The model's vision tower cannot be used; the message says why."""


def pooled(model: "PreTrainedModel", inputs: "Mapping[str, torch.Tensor]") -> "torch.Tensor":
    """The features of a batch's pictures, (samples, 2 x hidden size), float32 on the CPU: the means, then the maxima.

    `inputs` are the processor's, one picture a sample, on the model's device. Architectures arrange patches differently
    (padded, in tiles, or in one row for the whole batch), but a picture always has the same share of the batch's
    patches as of the image tokens in its prompts. Raises NoFeatures if the model does not give its tower's last hidden
    state, if those shares are not whole numbers of patches, or if a feature is infinite or not a number.
    """
    import torch

    tokens = (inputs["input_ids"] == loading.image_token(model)).sum(1).cpu()
    with torch.inference_mode():
        patches = _patches(model, inputs)
        total = int(tokens.sum())
        if not total or (tokens * len(patches) % total).any():
            raise NoFeatures(f"its {len(patches)} patches do not divide into the pictures of a batch")
        sizes = (tokens * len(patches) // total).tolist()
        parts = patches.float().split(sizes)
        features = torch.stack([torch.cat([part.mean(0), part.amax(0)]) for part in parts]).cpu()
    if not torch.isfinite(features).all():
        dtype = str(model.dtype).removeprefix("torch.")
        raise NoFeatures(
            f"its vision tower gives values that are not finite in {dtype}; options: {{dtype: float32}} in the model's "
            "file has the widest range"
        )
    return features


def _patches(model: "PreTrainedModel", inputs: "Mapping[str, torch.Tensor]") -> "torch.Tensor":
    """The tower's last hidden state for all patches of a batch, in order, without padding: (patches, hidden size)."""
    given = encoding.picture_inputs(inputs)
    try:
        state = model.get_image_features(**given).last_hidden_state
    # Errors of an architecture that does it otherwise. Any other RuntimeError may be the GPU's fault.
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NoFeatures(f"get_image_features: {reason}") from error
    if state is None or state.ndim not in (2, 3):
        raise NoFeatures("get_image_features does not return the last hidden state of a vision tower")
    if state.ndim == 2:
        return state
    mask = given.get("pixel_attention_mask")
    # In LFM2-VL the mask has an entry for each patch, in other models one for each pixel.
    padded = mask is not None and mask.shape == state.shape[:2]
    return state[mask.bool()] if padded else state.flatten(0, 1)
