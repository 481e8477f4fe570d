"""A job's attempts on Modal: what they cost, and when to stop."""

import json
import time
from pathlib import Path

from vlm.compute.files import write_atomically
from vlm.compute.request import Request
from vlm.config.errors import InputError

_MAX_KILLED = 3  # consecutive attempts killed at the same point


class Attempt:
    """One container's attempt at a job, recorded in a file so that its time counts even if it is killed."""

    def __init__(self, directory: Path) -> None:
        import psutil

        self.earlier = _notes(directory)
        self.started = psutil.Process().create_time()  # starting Python and importing are billed, too
        self.ended = False
        self.cuda_error = False
        self.number = len(self.earlier)
        self._file = directory / "attempts" / f"{self.number}.json"

    def note(self, done: int) -> None:
        """Records that the attempt is alive, or has ended, with `done` units of work finished."""
        note = {"started": self.started, "seen": time.time(), "ended": self.ended, "done": done}
        note |= {"cuda_error": self.cuda_error}
        self._file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._file, json.dumps(note))

    def repeats_cuda_error(self, done: int) -> bool:
        """Whether an earlier attempt ended with a CUDA error when no less work was done than now."""
        return any(note.get("cuda_error") and note["done"] >= done for note in self.earlier)

    def refuse_hopeless(self) -> None:
        """Raises InputError if the last attempts were all killed, without an error, at the same point."""
        last = self.earlier[-_MAX_KILLED:]
        if len(last) == _MAX_KILLED and not any(note["ended"] for note in last) and len({n["done"] for n in last}) == 1:
            raise InputError(
                f"modal: the container was killed {_MAX_KILLED} times at the same point, probably because it ran "
                "out of memory; try a smaller evaluation.batch_size or finetune.micro_batch, or a larger "
                "container.memory_gib_per_gpu in configs/gpus.yaml"
            )


class Limits:
    """The limits on a job's cost and time."""

    def __init__(self, request: Request, attempt: Attempt, since: float) -> None:
        earlier = [(note["seen"] - note["started"], note["started"]) for note in attempt.earlier]
        self._request = request
        self._started = attempt.started
        self._all = sum(seconds for seconds, _ in earlier)
        self._this_run = sum(seconds for seconds, started in earlier if started >= since)

    def check(self) -> None:
        """Raises InputError if a limit is exceeded. Each container gets an equal part of the money."""
        now = time.time() - self._started
        most = self._request.max_dollars
        dollars = (self._all + now) * self._request.dollars_per_second * self._request.containers
        if most is not None and dollars > most:
            raise InputError(
                f"params.yaml: modal.max_dollars: the job has cost ${dollars:.4g}, more than {most:g}; finished "
                "work is kept, and with a larger modal.max_dollars `dvc repro` resumes from there"
            )
        if self._this_run + now > self._request.seconds:
            raise InputError(
                f"params.yaml: modal.timeout: the job has run for its {self._request.seconds / 3600:g} hours; "
                "finished work is kept, and `dvc repro` resumes from there for as long again"
            )


def spent(folder: Path, request: Request) -> dict[str, float | str]:
    """GPU seconds and cost, at list price with CPU and memory, of all attempts of a job so far, in all containers."""
    seconds = sum(seconds for shard in _attempts(folder) for seconds, _ in shard)
    return {
        "gpu": request.gpu,
        "gpu_seconds": round(seconds * request.gpu_count, 1),
        "containers": request.containers,
        "dollars_per_second": request.dollars_per_second,
        "dollars": round(seconds * request.dollars_per_second, 4),
    }


def _attempts(folder: Path) -> list[list[tuple[float, dict]]]:
    """For each shard, its attempts as pairs (seconds, note), oldest first."""
    shards = [path for path in folder.glob("*") if (path / "attempts").is_dir()]
    return [[(note["seen"] - note["started"], note) for note in _notes(shard)] for shard in shards]


def _notes(directory: Path) -> list[dict]:
    notes = [json.loads(file.read_text()) for file in directory.glob("attempts/*.json")]
    return sorted(notes, key=lambda note: note["started"])
