import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText

from vlm.commands import merge
from vlm.config.errors import InputError
from vlm.config.params import load_params
from vlm.evaluation import batching
from vlm.evaluation.posterior import Posterior
from vlm.models import loading


@pytest.fixture
def adapter(tiny, image_params, tmp_path):
    """Random weights, large enough to change every answer."""
    torch.manual_seed(0)
    base, _ = loading.load(tiny, image_params)
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules=r".*\.(q_proj|w1)", init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    return str(tmp_path / "adapter")


def test_merged_weights_have_the_same_posterior_as_the_adapter(adapter, make_split, tmp_path):
    params, split = load_params(), make_split("test", 4)
    difference = merge.merge(params, adapter, tmp_path / "merged", split)
    assert difference < 1e-4
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").eval()
    base, processor = loading.load(params.model, params.image)
    inputs = batching.Loader(split, processor, params.task)(range(4))
    p, unadapted = (Posterior(vlm, processor, params.task)(inputs) for vlm in (merged, base))
    assert (p - unadapted).abs().max() > 0.01
    with pytest.raises(InputError, match="merged: exists; name a new folder"):
        merge.merge(params, adapter, tmp_path / "merged", split)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "merged", "test.parquet"]
