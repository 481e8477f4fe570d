"""An adapter of the embedded model."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from vlm.models import loading


@pytest.fixture
def adapter(tiny, image_params, tmp_path):
    """Random weights, large enough to change every answer."""
    torch.manual_seed(0)
    base, _ = loading.load(tiny, image_params)
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules=r".*\.(q_proj|w1)", init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    return str(tmp_path / "adapter")
