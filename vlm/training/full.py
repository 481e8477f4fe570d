"""Full fine-tuning: which parameters of a model are trained, and the folder that the trained model is written to.

The weights are trained in float32, because an update is often smaller than half a step of bfloat16 at the weight's size
and would be lost; matrix products run in the model's own dtype (autocast). The result is written in that dtype.
"""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from vlm.config.errors import InputError
from vlm.config.models import ModelConfig
from vlm.config.params import LearningRateScale
from vlm.models import loading
from vlm.training import lora

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# The files beside its weights that say how a model is loaded and generates.
_CONFIGURATION = ("config.json", "generation_config.json")


def unfreeze(model: "PreTrainedModel", scale: LearningRateScale) -> None:
    """Makes all parameters trainable, except in parts whose learning rate is multiplied by 0.

    Raises InputError if none is left.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(getattr(scale, lora.part(name)) > 0)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(
            "params.yaml: finetune.lr_scale: is 0 for every part that the model has: nothing would be trained"
        )


def table(model: "PreTrainedModel") -> list[dict[str, str | int]]:
    """One row per module that has trained parameters of its own; the columns are those of lora.table.

    Parameters that two modules share count for the first. The features are 0 for modules other than linear layers.
    """
    rows = []
    seen = set()
    for name, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False) if p.requires_grad and id(p) not in seen]
        if own:
            seen.update(map(id, own))
            rows.append(
                {
                    "module": name,
                    "part": lora.part(name),
                    "in_features": getattr(module, "in_features", 0),
                    "out_features": getattr(module, "out_features", 0),
                    "trainable_parameters": sum(p.numel() for p in own),
                }
            )
    return rows


def save(config: ModelConfig, checkpoint: Path, directory: Path) -> None:
    """Writes a checkpoint's weights into `directory`, in the model's dtype, with the base model's configuration."""
    import torch
    from safetensors.torch import load_file, save_file

    dtype = getattr(torch, config.dtype)
    weights = load_file(checkpoint / "model.safetensors")
    cast = {name: w.to(dtype) if w.is_floating_point() else w for name, w in weights.items()}
    save_file(cast, directory / "model.safetensors", {"format": "pt"})
    base = loading.require_files(config, weights=False)
    for name in _CONFIGURATION:
        if (base / name).exists():
            shutil.copyfile(base / name, directory / name)
    about = {"id": config.id, "revision": config.revision}
    (directory / loading.BASE_FILE).write_text(json.dumps(about, indent=2, sort_keys=True) + "\n")
