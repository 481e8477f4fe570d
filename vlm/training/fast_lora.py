"""LoRA's layers on a CPU: what PEFT computes, with fewer passes over memory and a cheaper dropout.

torch draws a random number an element for dropout, and PEFT scales and adds tensors as large as the layers' outputs;
docs/log.md has what that takes.
"""

from types import MethodType
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.lora import Linear

_CHANCES = 2**16  # a probability is rounded to one in so many


def make_fast(model: PeftModel) -> None:
    """Gives plain LoRA layers a forward of their own; variants (DoRA) and layers of other kinds keep PEFT's."""
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
    """(..., in_features) -> (..., out_features)."""
    (name,) = layer.lora_A
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    base = layer.get_base_layer()
    here = x.device.type == "cpu" and x.ndim > 1 and x.dtype == a.dtype == base.weight.dtype
    if not here or args or kwargs or layer.merged or layer.disable_adapters or name not in layer.active_adapters:
        return type(layer).forward(layer, x, *args, **kwargs)
    rows, scale, dropout = x.flatten(0, -2), layer.scaling[name], layer.lora_dropout[name]
    out = base(rows)
    if isinstance(dropout, torch.nn.Dropout) and dropout.training and dropout.p > 0:
        chances = min(round(dropout.p * _CHANCES), _CHANCES - 1)
        rows, scale = rows.masked_fill(_dropped(rows, chances), 0), scale * _CHANCES / (_CHANCES - chances)
    # Scaled where it is narrow, and added in place: nothing else holds the base layer's output.
    return out.addmm_(torch.nn.functional.linear(rows, a) * scale, b.T).unflatten(0, x.shape[:-1])


def _dropped(like: torch.Tensor, chances: int) -> torch.Tensor:
    """True for each element with `chances` in 65,536: 16 bits of numpy's SFC64, which torch's generator seeds."""
    generator = np.random.SFC64(int(torch.randint(2**62, ())))
    draws = torch.from_numpy(generator.random_raw(-(-like.numel() // 4)).view(np.int16))
    return draws[: like.numel()].view(like.shape) < chances - _CHANCES // 2
