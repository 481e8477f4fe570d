"""Runs one job in several processes of this machine, data parallel: one for every GPU.

python -m vlm.compute.processes    is what `run` starts, by torchrun, in each of them.
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
    """`job.run(directory, emit)` in `count` processes, of which the first one speaks and writes.

    Raises InputError as the job does. They end with this process: the first one cannot speak to nobody.
    """
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as complaints:
        file = Path(folder, "job.pickle")
        file.write_bytes(pickle.dumps(job))
        torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        command = [sys.executable, "-m", *torchrun, "-m", "vlm.compute.processes", str(file), str(directory)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaints, text=True) as process:
            try:
                for line in process.stdout or ():
                    kind, values = json.loads(line)
                    if kind == "InputError":
                        raise InputError(values)
                    emit(_EVENTS[kind](**values))
            finally:
                process.terminate()
        if process.returncode:
            complaints.seek(0)
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{complaints.read()}")


def main() -> None:
    file, directory = map(Path, sys.argv[1:])
    job = pickle.loads(file.read_bytes())
    output, sys.stdout = sys.stdout, sys.stderr  # so that nothing else is taken for an event

    def say(kind: str, values: dict | str) -> None:
        # In one write: an input error is said by every process, and print() writes the line's end by itself.
        output.write(json.dumps([kind, values]) + "\n")
        output.flush()

    try:
        job.run(directory, lambda event: say(type(event).__name__, asdict(event)))
    except InputError as error:
        say("InputError", str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
