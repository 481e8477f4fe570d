"""Writes the folder of a fine-tune: an adapter in PEFT's format or a whole model, the processor and a model card."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from vlm.models import loading
from vlm.training import full

if TYPE_CHECKING:
    from transformers import ProcessorMixin

    from vlm.training.job import FineTuning


def save(
    job: "FineTuning",
    checkpoint: Path,
    directory: Path,
    processor: "ProcessorMixin",
    validation: dict[str, float],
    learning_rate: float,
) -> None:
    """Writes a checkpoint's result into `directory`.

    `validation` is its row of checkpoints.csv, `learning_rate` the highest of the schedule.
    """
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    if job.finetune.method == "full":
        full.save(job.model, checkpoint, directory)
    else:
        _save_adapter(job, checkpoint, directory)
    processor.save_pretrained(directory)
    (directory / "README.md").write_text(_model_card(job, validation, learning_rate), encoding="utf-8")


def _save_adapter(job: "FineTuning", checkpoint: Path, directory: Path) -> None:
    shutil.copyfile(checkpoint / "adapter_model.safetensors", directory / "adapter_model.safetensors")
    config = json.loads((checkpoint / "adapter_config.json").read_text())
    # PEFT has written the path that the model was loaded from, which can differ from the id (see ModelConfig.folder).
    config["base_model_name_or_path"] = job.model.id
    config["revision"] = loading.hub_revision(job.model)  # without it PEFT would load the base model's main branch
    (directory / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _model_card(job: "FineTuning", validation: dict[str, float], learning_rate: float) -> str:
    from huggingface_hub import ModelCard, ModelCardData

    from vlm.training.losses import UNITS

    task, model, whole = job.task, job.model, job.finetune.method == "full"
    data = ModelCardData(
        base_model=model.id,
        library_name="transformers" if whole else "peft",
        pipeline_tag="image-text-to-text",
        tags=[*([] if whole else ["lora"]), "image-classification", task.name],
    )
    without_effect = {"track_with", *(["lora"] if whole else [])}
    knobs = json.dumps(job.finetune.model_dump(mode="json", exclude=without_effect), indent=2)
    low, high = validation["low"], validation["high"]
    text = f"""\
---
{data.to_yaml()}
---

# {model.id}, fine-tuned for {task.name}

{"A model" if whole else "A LoRA adapter"} that answers one of {len(task.labels)} labels. Base model: `{model.id}`, revision `{model.revision or "not pinned"}`;
its license holds for what is made with it.

On validation, constrained to the labels: accuracy {validation["accuracy"]:.1%} ({low:.1%} to {high:.1%}, Wilson 95 %),
loss {validation["eval_loss"]:.4f} ({UNITS[job.finetune.loss]}), at step {validation["step"]}. The test split was not looked at.

Training data: sha256 `{_sha256(job.train)}`. Seed {job.seed}. Highest learning rate {learning_rate:.4g}. Parameters:

```json
{knobs}
```

Prompt:

```
{task.prompt.system or "(no system prompt)"}

{task.prompt.user}
```

Labels: {", ".join(task.labels)}. An answer reads `{task.answer(task.labels[0])}`.
"""  # noqa: E501
    return str(ModelCard(text))


def _sha256(path: str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
