"""`python -m vlm batch-size`: the evaluation.batch_size that is fastest on this device.

Runs the structured evaluation's forward on copies of the test split's longest sample, in batches twice as large each
time. Stops at a batch that does not fit or would, judging by the last doubling, take more than 90 % of the free memory,
and after two sizes that were not faster than the fastest.
"""

import argparse
import resource
import sys
import time
from collections.abc import Callable

import psutil

from vlm import evaluation
from vlm.config.params import Params, load_params
from vlm.data import dataset
from vlm.evaluation import batching
from vlm.models import loading, memory

_FILL = 0.9  # of the free memory, at most
_CLEARLY = 1.05  # times as fast: a larger batch has to be to be worth its memory
_ENOUGH = 2  # sizes in a row that were no faster


def propose(params: Params, data: str, adapter: str | None = None) -> int:
    """The power of two with the most samples a second; prints memory and speed of each size on the way."""
    import torch

    from vlm.evaluation.posterior import Posterior

    model, processor = loading.load(params.model, params.image, adapter)
    posterior = Posterior(model, processor, params.task)
    lengths = batching.prompt_lengths(data, processor, params.task)
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    load = batching.Loader(data, processor, params.task)
    start, free = _used(), _free()
    print(f"{lengths[longest]} tokens in the longest prompt, {free / 1e9:.1f} GB free on {model.device}")
    best, fastest, slower, before = 1, 0.0, 0, 0
    size = 1
    while size <= dataset.count(data) and slower < _ENOUGH:
        inputs = load([longest] * size).to(model.device, model.dtype)
        try:
            rate = size / _seconds(lambda batch=inputs: posterior(batch))
        except RuntimeError as error:
            if not memory.is_out_of_memory(error):
                raise
            print(f"{size:6}: does not fit")
            break
        took = _used() - start
        print(f"{size:6}: {took / 1e9:6.2f} GB, {rate:8.1f} samples/s")
        if rate > fastest * _CLEARLY:
            best, fastest, slower = size, rate, 0
        else:
            slower += 1
        if took + 2 * max(0, took - before) > _FILL * free:
            break
        size, before = 2 * size, took
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return best


def _seconds(forward: Callable[[], object]) -> float:
    """The shorter of two runs: the first one also pays for allocations and kernels."""
    taken = []
    for _ in range(2):
        began = time.perf_counter()
        forward()  # its result is on the CPU, so the device has finished
        taken.append(time.perf_counter() - began)
    return min(taken)


def _used() -> int:
    """The peak memory so far, in bytes."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _free() -> int:
    """The device's free memory, in bytes."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    return psutil.virtual_memory().available


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--adapter", metavar="FOLDER", help="a fine-tuned model's (default: none)")


def main(asked: argparse.Namespace) -> None:
    size = propose(load_params(), evaluation.TEST, asked.adapter)
    print(f"evaluation.batch_size: {size}    # dvc exp run -S evaluation.batch_size={size}")
