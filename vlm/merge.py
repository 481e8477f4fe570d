"""Writes a fine-tuned model's merged weights: `python -m vlm.merge models/merged`, for servers that take no adapters.

The merged model is loaded again and has to give the same posterior as the adapter on its base. Mind the base model's
license before publishing merged weights.
"""

import argparse
import shutil
from pathlib import Path

from vlm import batching, dataset, evaluation, model, pinned
from vlm.errors import InputError, reported
from vlm.params import Params, load_params

# Merging rounds the weights to their dtype once more; what it may change in a probability
_TOLERANCE = {"float32": 1e-4, "float16": 0.02, "bfloat16": 0.05}
_SAMPLES = 16


def merge(params: Params, adapter: str, output: Path, data: str) -> float:
    """Writes the merged model and its processor into `output`; gives the largest difference in a probability.

    Compared on the first samples of `data`. Raises InputError if `output` exists, and RuntimeError, with nothing
    written, if the posteriors differ by more than rounding.
    """
    import torch

    from vlm.posterior import Posterior

    if output.exists():
        raise InputError(f"{output}: exists; name a new folder")
    with_adapter, processor = model.load(params.model, params.image, adapter, merged=False)
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
    written = params.model.model_copy(update={"id": str(temporary), "revision": pinned.folder_hash(temporary)})
    merged, _ = model.load(written, params.image)
    ask = Posterior(merged, processor, params.task)
    found = torch.cat([ask(load([row]).to(device, dtype)) for row in rows])
    difference = float((found - expected).abs().max())
    if difference > _TOLERANCE[params.model.dtype]:
        shutil.rmtree(temporary)
        raise RuntimeError(f"merged and adapter differ by {difference:.2g} in a probability")
    temporary.rename(output)
    return difference


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m vlm.merge", description=__doc__.splitlines()[0].split(":")[0])
    parser.add_argument("output", type=Path, help="a new folder for the merged model")
    parser.add_argument("--adapter", default="models/adapter", metavar="FOLDER", help="models/adapter unless given")
    asked = parser.parse_args()
    difference = merge(load_params(), asked.adapter, asked.output, evaluation.VALIDATION)
    print(f"{asked.output}: merged; no probability differs from the adapter's by more than {difference:.1g}")


if __name__ == "__main__":
    with reported():
        main()
