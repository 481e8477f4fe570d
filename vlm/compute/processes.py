"""Runs one job in several processes on this machine, one for each GPU: `python -m vlm.compute.processes` in each.

A fine-tune is data-parallel, and torchrun starts its processes. The batches of an evaluation are shared out.
"""

import json
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vlm.compute.progress import Combined
from vlm.config import cores
from vlm.config.errors import InputError
from vlm.config.events import Emit, Event, Log, Progress, Scalars

if TYPE_CHECKING:
    from vlm.compute import Job

_HERE = "vlm.compute.processes"
_EVENTS = {kind.__name__: kind for kind in (Progress, Scalars, Log)}


def run(job: "Job", directory: Path, emit: Emit, count: int) -> None:
    """Runs `job.run(directory, emit)` in `count` processes, of which only the first emits events and writes files.

    Raises InputError if the job does, and RuntimeError, with all of stderr, if the processes fail otherwise. They end
    when this process dies, because the first one can no longer write its events. Each may use an equal part of the
    cores (see vlm.config.cores).
    """
    torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "-m"]
    with _started([*torchrun, _HERE], job, directory, _part_of_cores(count)) as pass_on:
        pass_on(emit)


def answer(job: "Job", directory: Path, emit: Emit, gpus: Sequence[str]) -> None:
    """Answers an evaluation's batches in one process for each of `gpus`, and merges the results into `directory`.

    `gpus` are values for CUDA_VISIBLE_DEVICES. Raises and divides the cores like `run`.
    """
    count = len(gpus)
    shards = [directory / f"{count} processes" / str(shard) for shard in range(count)]
    combined, lock = Combined(emit), threading.Lock()

    def emit_from(shard: int, event: Progress | Log) -> None:  # an evaluation has no scalars
        with lock:
            combined(shard, event)

    with ThreadPoolExecutor(count) as threads, ExitStack() as stack:  # the processes end before the threads
        followed = []
        for shard, gpu in enumerate(gpus):
            shards[shard].mkdir(parents=True, exist_ok=True)
            environment = {"CUDA_VISIBLE_DEVICES": gpu, **_part_of_cores(count)}
            started = _started([_HERE], job, shards[shard], environment, str(shard), str(count))
            pass_on = stack.enter_context(started)
            followed.append(threads.submit(pass_on, partial(emit_from, shard)))
        for future in as_completed(followed):
            future.result()
    job.merge(shards, directory)


def _part_of_cores(count: int) -> dict[str, str]:
    """The environment variables that give each of `count` processes an equal part of the cores, and as many threads.

    Without the second one they would have those of this process or, if there are none, one each: torchrun's default.
    """
    each = str(max(1, cores.available() // count))
    return {cores.LIMIT: each} | ({} if cores.THREADS_ARE_SET else {cores.THREADS: each})


@contextmanager
def _started(
    module: Sequence[str], job: "Job", directory: Path, environment: Mapping[str, str], *shard: str
) -> Iterator[Callable[[Emit], None]]:
    """Starts `python -m MODULE` for a job, and ends it on exit.

    Yields a function that emits the job's events until it ends, and raises InputError or RuntimeError (see `run`).
    """
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as errors:
        file = Path(folder, "job.pickle")
        file.write_bytes(pickle.dumps(job))
        command = [sys.executable, "-m", *module, str(file), str(directory), *shard]
        environment = {**os.environ, **environment}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True) as process:

            def pass_on(emit: Emit) -> None:
                for line in process.stdout or ():
                    kind, values = json.loads(line)
                    if kind == "InputError":
                        raise InputError(values)
                    emit(_EVENTS[kind](**values))
                if process.wait():
                    errors.seek(0)
                    raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{errors.read()}")

            try:
                yield pass_on
            finally:
                process.terminate()


def main() -> None:
    file, directory = map(Path, sys.argv[1:3])
    shard = tuple(map(int, sys.argv[3:]))  # (i, n) of an evaluation
    job = pickle.loads(file.read_bytes())
    output, sys.stdout = sys.stdout, sys.stderr  # so that no other output is taken for an event

    def send(kind: str, values: dict | str) -> None:
        # In one write: every process sends an InputError, and print() would write the newline separately.
        output.write(json.dumps([kind, values]) + "\n")
        output.flush()

    def emit(event: Event) -> None:
        send(type(event).__name__, asdict(event))

    try:
        if shard:
            job.answer(directory, emit, shard)
        else:
            job.run(directory, emit)
    except InputError as error:
        send("InputError", str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
