"""Proposes the largest evaluation.batch_size that fits into this device's memory: `python -m vlm.batch_size`.

Runs the structured evaluation's forward on copies of the test split's longest sample in ever larger batches. Stops at a
batch that does not fit, or that, by what the last doubling took, would take more than 90 % of the memory that is free.
"""

import argparse
import resource
import sys
import time

import psutil

from vlm import batching, dataset, evaluation, model, runtime
from vlm.errors import reported
from vlm.params import Params, load_params

_SHARE = 0.9  # of the memory that was free


def propose(params: Params, data: str, adapter: str | None = None) -> int:
    """The largest power of two; prints what every size on the way took, for a smaller one may be as fast."""

    from vlm.posterior import Posterior

    loaded, processor = model.load(params.model, params.image, adapter)
    posterior = Posterior(loaded, processor, params.task)
    lengths = batching.prompt_lengths(data, processor, params.task)
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    load = batching.Loader(data, processor, params.task)
    start, free = _used(), _free()
    print(f"{lengths[longest]} tokens in the longest prompt, {free / 1e9:.1f} GB free on {loaded.device}")
    fits, size, before = 1, 1, 0
    while size <= dataset.count(data):
        inputs = load([longest] * size)
        began = time.perf_counter()
        try:
            posterior(inputs.to(loaded.device, loaded.dtype))
        except RuntimeError as error:
            if not runtime.is_out_of_memory(error):
                raise
            print(f"{size:6}: does not fit")
            break
        fits, took = size, _used() - start
        print(f"{size:6}: {took / 1e9:6.2f} GB, {size / (time.perf_counter() - began):8.1f} samples/s")
        if took + 2 * max(0, took - before) > _SHARE * free:
            break
        size, before = 2 * size, took
    return fits


def _used() -> int:
    """Bytes at the peak until now."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _free() -> int:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    return psutil.virtual_memory().available


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m vlm.batch_size", description=__doc__.splitlines()[0].split(":")[0])
    parser.add_argument("--adapter", metavar="FOLDER", help="of the fine-tuned model; none unless given")
    asked = parser.parse_args()
    size = propose(load_params(), evaluation.TEST, asked.adapter)
    print(f"evaluation.batch_size: {size}    # dvc exp run -S evaluation.batch_size={size}")


if __name__ == "__main__":
    with reported():
        main()
