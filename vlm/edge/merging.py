"""Writes a fine-tuned model with its adapter merged into the weights, and compares the result with the adapter."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vlm.config import pins
from vlm.config.errors import InputError
from vlm.config.models import ModelConfig
from vlm.config.params import Params
from vlm.config.task import Task
from vlm.data import dataset
from vlm.evaluation import batching
from vlm.models import encoding, loading

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from transformers import PreTrainedModel, ProcessorMixin

# The largest difference in a probability that is accepted: merging rounds the weights to their dtype once more.
_TOLERANCE = {"float32": 1e-4, "float16": 0.02, "bfloat16": 0.05}
_SAMPLES = 16


def merge(params: Params, adapter: str, output: Path, images: "Sequence[Image.Image]") -> tuple[ModelConfig, float]:
    """Writes the merged model and its processor to `output`; of a whole model (finetune.method: full), a copy.

    Returns the merged model, and the largest difference of its probabilities for `images` from the adapter's. Raises
    InputError if `output` exists, and RuntimeError, without writing `output`, if the probabilities differ by more than
    rounding explains.
    """
    if output.exists():
        raise InputError(f"{output}: exists; name a new folder")
    whole = loading.is_whole_model(adapter)
    model, processor = loading.load(params.model, params.image, adapter, merged=False)
    expected = posteriors(model if whole else model.get_base_model(), processor, params.task, images)
    temporary = output.with_name(f".{output.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        (model if whole else model.merge_and_unload()).save_pretrained(temporary)
        processor.save_pretrained(temporary)
        del model  # two of them need not be in memory at once
        written = params.model.model_copy(update={"id": str(temporary), "revision": pins.folder_hash(temporary)})
        merged, _ = loading.load(written, params.image)
        difference = float((posteriors(merged, processor, params.task, images) - expected).abs().max())
        if difference > _TOLERANCE[params.model.dtype]:
            raise RuntimeError(f"the merged model's probabilities differ from the adapter's by up to {difference:.2g}")
        temporary.rename(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return written.model_copy(update={"id": str(output)}), difference


def samples(data: str) -> "list[Image.Image]":
    """Pictures of a split on which models are compared: at most 16, evenly spaced. Raises InputError without any."""
    rows = dataset.count(data)
    if not rows:
        raise InputError(f"{data}: has no rows, but some are needed to compare the models; add pictures")
    count = min(_SAMPLES, rows)
    return [batching.decoded(row.image) for row in dataset.Reader(data).rows([i * rows // count for i in range(count)])]


def posteriors(
    model: "PreTrainedModel", processor: "ProcessorMixin", task: Task, images: "Sequence[Image.Image]"
) -> "torch.Tensor":
    """(images, labels), float64: the posterior for one picture at a time, as tasks with the picture last need it."""
    import torch

    from vlm.evaluation.posterior import Posterior

    posterior = Posterior(model, processor, task)
    return torch.cat([posterior(encoding.to_device(encoding.encode(processor, task, [one]), model)) for one in images])
