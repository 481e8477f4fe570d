"""`python -m vlm merge models/merged`: writes a fine-tuned model's merged weights, for servers without adapter support.

The merged model is loaded again and its posterior is compared with that of the base model with the adapter. Check the
base model's license before publishing merged weights.
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

# The largest difference in a probability that is accepted: merging rounds the weights to their dtype once more.
_TOLERANCE = {"float32": 1e-4, "float16": 0.02, "bfloat16": 0.05}
_SAMPLES = 16


def merge(params: Params, adapter: str, output: Path, data: str) -> float:
    """Writes the merged model and its processor to `output`; returns the largest difference in a probability.

    Compares on the first samples of `data`. Raises InputError if `output` exists, and RuntimeError, without writing
    `output`, if the posteriors differ by more than rounding explains.
    """
    import torch

    from vlm.evaluation.posterior import Posterior

    if output.exists():
        raise InputError(f"{output}: exists; name a new folder")
    with_adapter, processor = loading.load(params.model, params.image, adapter, merged=False)
    load = batching.Loader(data, processor, params.task)
    rows = range(min(_SAMPLES, dataset.count(data)))
    # One sample at a time, because a task with the picture last needs batches without padding
    posterior = Posterior(with_adapter.get_base_model(), processor, params.task)
    inputs = [loading.to_device(load([row]), with_adapter.get_base_model()) for row in rows]
    expected = torch.cat([posterior(one) for one in inputs])

    temporary = output.with_name(f".{output.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with_adapter.merge_and_unload().save_pretrained(temporary)
    processor.save_pretrained(temporary)
    written = params.model.model_copy(update={"id": str(temporary), "revision": pins.folder_hash(temporary)})
    merged, _ = loading.load(written, params.image)
    posterior = Posterior(merged, processor, params.task)
    found = torch.cat([posterior(one) for one in inputs])
    difference = float((found - expected).abs().max())
    if difference > _TOLERANCE[params.model.dtype]:
        shutil.rmtree(temporary)
        raise RuntimeError(f"the merged model's probabilities differ from the adapter's by up to {difference:.2g}")
    temporary.rename(output)
    return difference


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "output", type=Path, metavar="FOLDER", help="a new folder for the merged model, e.g. models/merged"
    )
    parser.add_argument(
        "--adapter", default="models/adapter", metavar="FOLDER", help="the fine-tuned adapter (default: models/adapter)"
    )


def main(arguments: argparse.Namespace) -> None:
    difference = merge(load_params(), arguments.adapter, arguments.output, evaluation.VALIDATION)
    print(f"{arguments.output}: merged; no probability differs from the adapter's by more than {difference:.1g}")
