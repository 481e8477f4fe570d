"""`python -m vlm batch-size`: finds the fastest evaluation.batch_size on this device.

Runs the structured evaluation's forward pass on copies of the test split's longest sample, doubling the batch size each
time. Stops when a batch does not fit into memory, when the next one would take more than 90 % of the free memory
(extrapolated from the last doubling), or after two consecutive sizes that were not faster than the best one.
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
from vlm.models import encoding, loading, memory

_MAX_MEMORY = 0.9  # maximum fraction of the free memory
_MIN_SPEEDUP = 1.05  # by which a larger batch has to be faster to be worth its memory
_MAX_SLOWER = 2  # consecutive sizes that were not faster


def seconds(forward: Callable[[], object]) -> float:
    """The shorter time of two runs; the first run also includes allocations and loading of kernels."""
    taken = []
    for _ in range(2):
        began = time.perf_counter()
        forward()  # returns its result on the CPU, so the device has finished
        taken.append(time.perf_counter() - began)
    return min(taken)


def propose(
    params: Params, data: str, adapter: str | None = None, timed: Callable[[Callable[[], object]], float] = seconds
) -> int:
    """Returns the power of two with the most samples per second; prints the memory and speed of each size.

    `timed` returns the seconds that a forward pass takes.
    """
    import torch

    from vlm.evaluation.posterior import Posterior

    model, processor = loading.load(params.model, params.image, adapter)
    posterior = Posterior(model, processor, params.task)
    load = batching.Loader(data, processor, params.task, model.dtype)  # as in an evaluation
    lengths = load.lengths()
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    start, free = _used(), _free()
    print(f"{lengths[longest]} tokens in the longest prompt, {free / 1e9:.1f} GB free on {model.device}")
    best, fastest, slower, previous = 1, 0.0, 0, 0
    size = 1
    while size <= dataset.count(data) and slower < _MAX_SLOWER:
        on_cpu = load([longest] * size)
        try:
            inputs = encoding.to_device(on_cpu, model)
            rate = size / timed(lambda batch=inputs: posterior(batch))
        except RuntimeError as error:
            if not memory.is_out_of_memory(error):
                raise
            print(f"{size:6}: does not fit")
            break
        used = _used() - start
        print(f"{size:6}: {used / 1e9:6.2f} GB, {rate:8.1f} samples/s")
        if rate > fastest * _MIN_SPEEDUP:
            best, fastest, slower = size, rate, 0
        else:
            slower += 1
        if used + 2 * max(0, used - previous) > _MAX_MEMORY * free:
            break
        size, previous = 2 * size, used
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return best


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
    parser.add_argument("--adapter", metavar="FOLDER", help="a fine-tuned adapter, e.g. models/adapter (default: none)")


def main(arguments: argparse.Namespace) -> None:
    size = propose(load_params(), evaluation.TEST, arguments.adapter)
    print(f"evaluation.batch_size: {size}    # dvc exp run -S evaluation.batch_size={size}")
