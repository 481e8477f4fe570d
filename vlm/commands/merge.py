"""`python -m vlm merge models/merged`: a fine-tuned model's merged weights, for servers that take no adapters.

The merged model is loaded again and has to give the same posterior as the adapter on its base. Mind the base model's
license before publishing merged weights.
"""

import argparse
import shutil
from pathlib import Path

from vlm import evaluation
from vlm.config import pins
from vlm.config.errors import InputError
from vlm.config.params import Params, load_params
from vlm.data import dataset
from vlm.evaluation import batching
from vlm.models import loading

# Merging rounds the weights to their dtype once more; what it may change in a probability
_TOLERANCE = {"float32": 1e-4, "float16": 0.02, "bfloat16": 0.05}
_SAMPLES = 16


def merge(params: Params, adapter: str, output: Path, data: str) -> float:
    """Writes the merged model and its processor into `output`; gives the largest difference in a probability.

    Compared on the first samples of `data`. Raises InputError if `output` exists, and RuntimeError, with nothing
    written, if the posteriors differ by more than rounding.
    """
    import torch

    from vlm.evaluation.posterior import Posterior

    if output.exists():
        raise InputError(f"{output}: exists; name a new folder")
    with_adapter, processor = loading.load(params.model, params.image, adapter, merged=False)
    load = batching.Loader(data, processor, params.task)
    rows = range(min(_SAMPLES, dataset.count(data)))
    # One at a time, for a picture-last task wants batches without padding
    ask = Posterior(with_adapter.get_base_model(), processor, params.task)
    device, dtype = with_adapter.device, with_adapter.get_base_model().dtype
    expected = torch.cat([ask(load([row]).to(device, dtype)) for row in rows])

    temporary = output.with_name(f".{output.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with_adapter.merge_and_unload().save_pretrained(temporary)
    processor.save_pretrained(temporary)
    written = params.model.model_copy(update={"id": str(temporary), "revision": pins.folder_hash(temporary)})
    merged, _ = loading.load(written, params.image)
    ask = Posterior(merged, processor, params.task)
    found = torch.cat([ask(load([row]).to(device, dtype)) for row in rows])
    difference = float((found - expected).abs().max())
    if difference > _TOLERANCE[params.model.dtype]:
        shutil.rmtree(temporary)
        raise RuntimeError(f"merged and adapter differ by {difference:.2g} in a probability")
    temporary.rename(output)
    return difference


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=Path, metavar="FOLDER", help="a new folder for the merged model, models/merged")
    parser.add_argument("--adapter", default="models/adapter", metavar="FOLDER", help="(default: models/adapter)")


def main(asked: argparse.Namespace) -> None:
    difference = merge(load_params(), asked.adapter, asked.output, evaluation.VALIDATION)
    print(f"{asked.output}: merged; no probability differs from the adapter's by more than {difference:.1g}")
