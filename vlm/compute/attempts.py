"""The attempts of a job on Modal: what they cost, and when to stop."""

import json
import time
from pathlib import Path

from vlm.compute.files import write_atomically
from vlm.compute.request import Request
from vlm.config.errors import InputError

_SAVE_EVERY = 30.0  # seconds at most between saves of unfinished work; at first a tenth of what the attempt has taken
_HOPELESS = 3  # attempts in a row that were killed at the same place


class Attempt:
    """One container's try at a job, noted so that its time counts even if it is killed."""

    def __init__(self, directory: Path) -> None:
        import psutil

        self.earlier = _notes(directory)
        self.started = psutil.Process().create_time()  # Python's start and imports are paid for, too
        self.ended = False
        self.number = len(self.earlier)
        self._file = directory / "attempts" / f"{self.number}.json"
        self._saved = time.monotonic()
        self._began = time.monotonic()

    def note(self, done: int) -> None:
        """Writes down that the attempt is alive, or has ended, with `done` units of work finished."""
        note = {"started": self.started, "seen": time.time(), "ended": self.ended, "done": done}
        self._file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._file, json.dumps(note))
        self._saved = time.monotonic()

    def save_is_due(self) -> bool:
        now = time.monotonic()
        return now - self._saved > min(_SAVE_EVERY, max(1.0, 0.1 * (now - self._began)))

    def refuse_hopeless(self) -> None:
        """Raises InputError if the last attempts were killed without a word at one place."""
        last = self.earlier[-_HOPELESS:]
        if len(last) == _HOPELESS and not any(note["ended"] for note in last) and len({n["done"] for n in last}) == 1:
            raise InputError(
                f"modal: the container was killed {_HOPELESS} times at the same place, as happens when a machine's "
                "memory runs out; a smaller evaluation.batch_size or finetune.micro_batch, or another modal.gpu, helps"
            )


class Limits:
    """The money and the time that a job may take."""

    def __init__(self, request: Request, attempt: Attempt, since: float) -> None:
        earlier = [(note["seen"] - note["started"], note["started"]) for note in attempt.earlier]
        self._request = request
        self._started = attempt.started
        self._all = sum(seconds for seconds, _ in earlier)
        self._of_this_run = sum(seconds for seconds, started in earlier if started >= since)

    def check(self) -> None:
        """Raises InputError beyond a limit. A container of several has its share of the money."""
        now = time.time() - self._started
        most = self._request.max_dollars
        dollars = (self._all + now) * self._request.dollars_per_second * self._request.containers
        if most is not None and dollars > most:
            raise InputError(
                f"params.yaml: modal.max_dollars: the job has cost ${dollars:.4g}, more than {most:g}; what is "
                "finished is kept, and with a larger modal.max_dollars `dvc repro` goes on from there"
            )
        if self._of_this_run + now > self._request.seconds:
            raise InputError(
                f"params.yaml: modal.timeout: the job has run for its {self._request.seconds / 3600:g} hours; what is "
                "finished is kept: `dvc repro` goes on from there for as long again"
            )


def spent(folder: Path, request: Request) -> dict[str, float | str]:
    """What all attempts of a job, in all containers, have taken until now and cost by the list price."""
    seconds = sum(seconds for shard in _attempts(folder) for seconds, _ in shard)
    return {
        "gpu": request.gpu,
        "gpu_seconds": round(seconds * request.gpus(), 1),
        "dollars_per_second": request.dollars_per_second,
        "dollars": round(seconds * request.dollars_per_second, 4),
    }


def _attempts(folder: Path) -> list[list[tuple[float, dict]]]:
    """For every shard its attempts, oldest first, as their seconds and what they noted."""
    shards = [path for path in folder.glob("*") if (path / "attempts").is_dir()]
    return [[(note["seen"] - note["started"], note) for note in _notes(shard)] for shard in shards]


def _notes(directory: Path) -> list[dict]:
    notes = [json.loads(file.read_text()) for file in directory.glob("attempts/*.json")]
    return sorted(notes, key=lambda note: note["started"])
