"""Dropout that is three times as fast on a CPU as torch's, which draws a random number an element.

LoRA has one before every layer that it adapts: a fifth of tiny's training time (see docs/log.md).
"""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from peft import PeftModel

_CHANCES = 2**16  # a probability is rounded to one in so many


class Dropout(torch.nn.Dropout):
    """torch.nn.Dropout, on a CPU with 16 random bits an element: four elements to a draw of torch's generator."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0 or input.device.type != "cpu":
            return super().forward(input)
        dropped = min(round(self.p * _CHANCES), _CHANCES - 1)
        draws = torch.empty(-(-input.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        bits = draws.view(torch.int16)[: input.numel()].view(input.shape)
        return input.masked_fill(bits < dropped - _CHANCES // 2, 0) * (_CHANCES / (_CHANCES - dropped))


def make_fast(model: "PeftModel") -> None:
    """Exchanges the dropout of all LoRA layers."""
    for module in model.modules():
        for name, dropout in getattr(module, "lora_dropout", {}).items():
            if type(dropout) is torch.nn.Dropout:
                module.lora_dropout[name] = Dropout(dropout.p)
