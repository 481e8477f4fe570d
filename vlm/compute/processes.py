"""Runs one job in several data-parallel processes on this machine, one for each GPU.

torchrun, which `run` starts, executes `python -m vlm.compute.processes` in each process.
"""

import json
import pickle
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from vlm.config.errors import InputError
from vlm.config.events import Emit, Log, Progress, Scalars

if TYPE_CHECKING:
    from vlm.compute import Job

_EVENTS = {kind.__name__: kind for kind in (Progress, Scalars, Log)}


def run(job: "Job", directory: Path, emit: Emit, count: int) -> None:
    """Runs `job.run(directory, emit)` in `count` processes, of which only the first emits events and writes files.

    Raises InputError if the job does, and RuntimeError, with all of stderr, if the processes fail otherwise. They end
    when this process dies, because the first one can no longer write its events.
    """
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as errors:
        file = Path(folder, "job.pickle")
        file.write_bytes(pickle.dumps(job))
        torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        command = [sys.executable, "-m", *torchrun, "-m", "vlm.compute.processes", str(file), str(directory)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            try:
                for line in process.stdout or ():
                    kind, values = json.loads(line)
                    if kind == "InputError":
                        raise InputError(values)
                    emit(_EVENTS[kind](**values))
            finally:
                process.terminate()
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{errors.read()}")


def main() -> None:
    file, directory = map(Path, sys.argv[1:])
    job = pickle.loads(file.read_bytes())
    output, sys.stdout = sys.stdout, sys.stderr  # so that no other output is taken for an event

    def send(kind: str, values: dict | str) -> None:
        # In one write: every process sends an InputError, and print() would write the newline separately.
        output.write(json.dumps([kind, values]) + "\n")
        output.flush()

    try:
        job.run(directory, lambda event: send(type(event).__name__, asdict(event)))
    except InputError as error:
        send("InputError", str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
