"""The embedded model as files for llama.cpp."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from vlm.config.params import load_params
from vlm.edge import gguf_files
from vlm.edge.classifier import Classifier
from vlm.models import loading

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """A folder with the base model `tiny` at F16 and its classifier.json, for car_badges."""
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        params = load_params()
        gguf_files.write(Path(params.model.id), folder, "F16", "F16")
        processor = loading.load_processor(params.model, params.image)
        Classifier.of(params, processor, "0" * 64).with_files(folder, ("F16", "F16")).save(folder)
    return folder


@pytest.fixture
def adapter(tiny, image_params, tmp_path):
    """Random weights, large enough to change every answer."""
    torch.manual_seed(0)
    base, _ = loading.load(tiny, image_params)
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules=r".*\.(q_proj|w1)", init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    return str(tmp_path / "adapter")
