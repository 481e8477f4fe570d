"""LoRA layers on a CPU: PEFT's results, with fewer passes over memory and a cheaper dropout.

For dropout torch draws one random number per element, and PEFT scales and adds tensors as large as the layers' outputs;
docs/log.md says how much time that takes.
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
    """The output of a layer, (..., out_features), for `x`, (..., in_features)."""
    (name,) = layer.lora_A
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    base = layer.get_base_layer()
    supported = x.device.type == "cpu" and x.ndim > 1 and x.dtype == a.dtype == base.weight.dtype
    if not supported or args or kwargs or layer.merged or layer.disable_adapters or name not in layer.active_adapters:
        return type(layer).forward(layer, x, *args, **kwargs)
    rows, scale, dropout = x.flatten(0, -2), layer.scaling[name], layer.lora_dropout[name]
    out = base(rows)
    if isinstance(dropout, torch.nn.Dropout) and dropout.training and dropout.p > 0:
        chances = min(round(dropout.p * _CHANCES), _CHANCES - 1)
        rows, scale = rows.masked_fill(_dropped(rows, chances), 0), scale * _CHANCES / (_CHANCES - chances)
    # Scale the narrow tensor, and add in place, because nothing else holds the base layer's output.
    return out.addmm_(torch.nn.functional.linear(rows, a) * scale, b.T).unflatten(0, x.shape[:-1])


def _dropped(like: torch.Tensor, chances: int) -> torch.Tensor:
    """A mask of the shape of `like`, each element True with probability `chances` / 65,536.

    Each takes 16 bits of numpy's SFC64, which is seeded from torch's generator.
    """
    generator = np.random.SFC64(int(torch.randint(2**62, ())))
    draws = torch.from_numpy(generator.random_raw(-(-like.numel() // 4)).view(np.int16))
    return draws[: like.numel()].view(like.shape) < chances - _CHANCES // 2
