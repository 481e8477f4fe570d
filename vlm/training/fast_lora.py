"""LoRA layers with PEFT's results and fewer passes over memory.

PEFT scales and adds tensors as large as the layers' outputs. In reduced precision (a bfloat16 or float16 base, whose
adapters are float32) it also converts each layer's input to float32 for dropout and back for the product: 2.7 to 3.3
times the bytes of staying in the base layer's dtype, as counted from the tensors that pass through a layer. On a CPU
torch's dropout draws one random number per element; here each takes 16 bits. docs/log.md says how much time that saves.
"""

from types import MethodType
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.lora import Linear

_CHANCES = 2**16  # dropout probabilities are rounded to multiples of 1 / _CHANCES


def make_fast(model: PeftModel) -> None:
    """Replaces the forward of plain LoRA layers; variants (DoRA) and other kinds of layers keep PEFT's."""
    for layer in model.modules():
        if (
            isinstance(layer, Linear)
            and type(layer.get_base_layer()) is torch.nn.Linear
            and len(layer.lora_A) == 1
            and not layer.lora_variant
            and not any(layer.lora_bias.values())
        ):
            layer.forward = MethodType(_forward, layer)


def _forward(layer: Linear, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """The output of a layer, (..., out_features), for `x`, (..., in_features), in the dtype of the base layer's."""
    (name,) = layer.lora_A
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    base = layer.get_base_layer()
    dtype = _autocast_dtype(x.device.type) or x.dtype
    supported = x.ndim > 1 and dtype == base.weight.dtype
    if not supported or args or kwargs or layer.merged or layer.disable_adapters or name not in layer.active_adapters:
        return type(layer).forward(layer, x, *args, **kwargs)
    # Under autocast x can be float32, for example after a layer norm. One converted copy serves the base layer, too.
    rows, scale, dropout = x.flatten(0, -2).to(dtype), layer.scaling[name], layer.lora_dropout[name]
    out = base(rows)
    if isinstance(dropout, torch.nn.Dropout) and dropout.training and dropout.p > 0:
        if x.device.type == "cpu":
            chances = min(round(dropout.p * _CHANCES), _CHANCES - 1)
            rows, scale = rows.masked_fill(_dropped(rows, chances), 0), scale * _CHANCES / (_CHANCES - chances)
        else:
            rows = dropout(rows)
    # Scale the narrow tensor, and add in place, because nothing else holds the base layer's output. Autocast does not
    # convert the arguments of in-place operations, so the weights are converted here.
    narrow = torch.nn.functional.linear(rows, a.to(dtype)) * scale
    return out.addmm_(narrow, b.T.to(dtype)).unflatten(0, x.shape[:-1])


def _autocast_dtype(device: str) -> torch.dtype | None:
    """The dtype of matrix products on a type of device under autocast; None without autocast."""
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None


def _dropped(like: torch.Tensor, chances: int) -> torch.Tensor:
    """A mask of the shape of `like`, each element True with probability `chances` / 65,536.

    Each takes 16 bits of numpy's SFC64, which is seeded from torch's generator.
    """
    generator = np.random.SFC64(int(torch.randint(2**62, ())))
    draws = torch.from_numpy(generator.random_raw(-(-like.numel() // 4)).view(np.int16))
    return draws[: like.numel()].view(like.shape) < chances - _CHANCES // 2
