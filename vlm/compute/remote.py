"""What runs on Modal: a job's work in a container with a GPU, and the call that conducts it. Knows of Modal only paths.

On the volume: inputs/<hash>/ (what jobs read, by content), huggingface/ (weights), and jobs/<key>/<shards>/ with a
folder for each shard's work, which a preempted or failed attempt leaves to the next, and calls.json.
"""

import hashlib
import importlib
import json
import os
import queue
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, TypeAdapter

import vlm
from vlm import runtime
from vlm.errors import InputError
from vlm.events import Event, Log, Progress, Scalars

if TYPE_CHECKING:
    from vlm.compute import Job

_SAVE_EVERY = 30.0  # seconds at most between saves of unfinished work, and earlier a tenth of what an attempt has taken
_LEFT_OUT = {"scratch"}  # folders of a job that need not survive an attempt: what can be made again
_HOPELESS = 3  # attempts in a row that were killed at the same place
# What the second try may pass: a lost connection, a GPU that fell ill. Everything else fails again, at a GPU's price.
_PASSING = (ConnectionError, TimeoutError)


class Request(BaseModel):
    """A job and how to run it, as it travels: plain JSON."""

    key: str
    kind: str  # "vlm.evaluation.Evaluation"
    job: str  # JSON
    inputs: dict[str, str]  # path, as the job knows it -> folder of the volume that holds it
    from_hub: bool  # whether the model's weights have to be downloaded
    gpu: str  # "L4", "H100:4"
    dollars_per_second: float  # of all the GPUs of one container
    containers: int
    max_dollars: float | None
    seconds: float  # that the job may take
    region: str | None

    @classmethod
    def of(cls, job: "Job", **values: Any) -> "Request":
        kind = f"{type(job).__module__}.{type(job).__qualname__}"
        # What a task's file does not have must stay unset: a task knows the difference.
        text = TypeAdapter(type(job)).dump_json(job, exclude_unset=True, by_alias=True)
        return cls(kind=kind, job=text.decode(), **values)

    def rebuilt(self) -> "Job":
        """The job that `of` was given."""
        module, _, name = self.kind.rpartition(".")
        return TypeAdapter(getattr(importlib.import_module(module), name)).validate_json(self.job)

    def gpus(self) -> int:
        return int(self.gpu.partition(":")[2] or 1)

    def folder(self) -> Path:
        """Of the job's work, on the volume. How it is cut is part of it: work cut otherwise does not fit."""
        return Path("jobs", self.key, str(self.containers))


def work(
    request: Request,
    shard: int,
    since: float,
    volume: Path,
    disk: Path,
    commit: Callable[[], None],
    send: Callable[[list[dict]], None],
) -> dict:
    """Runs a job, or its share of one, going on with what an earlier attempt has saved on the volume.

    `since`: the time at which this run of the job began; `disk`: a folder of the container's own, for the work;
    `send` takes events, for whoever watches, and may fail.
    Gives {"files": {path: sha256}} of the results, or what cannot pass a second time: {"error": a line for the user}
    or {"traceback": of a bug}. Raises what a second try may pass.
    """
    kept = volume / request.folder() / str(shard)
    directory = disk / "job"
    mirror = _Mirror(directory, kept)
    mirror.restore()
    attempt = _Attempt(directory)
    record = _Record(directory / "events.jsonl", shard, attempt.number, send)

    def save() -> None:
        attempt.note(record.done)
        mirror.save()
        commit()

    try:
        attempt.refuse_hopeless()
        lay_out(request.inputs, volume, disk)
        save()  # so that the attempt counts, whatever comes
        limits = _Limits(request, attempt, since)

        def emit(event: Event) -> None:
            record(event)
            limits.check()
            if attempt.save_is_due():
                save()

        _run(request, shard, directory, emit)
        attempt.ended = True
        return {"files": _hashes(directory, request.rebuilt().RESULTS)}
    except InputError as error:
        attempt.ended = True
        return {"error": str(error)}
    except _PASSING:
        raise
    except Exception as error:
        attempt.ended = True
        if isinstance(error, RuntimeError) and runtime.is_out_of_memory(error):
            return {"error": _too_small(request)}
        if isinstance(error, RuntimeError) and "CUDA error" in str(error):
            raise
        return {"traceback": traceback.format_exc()}
    except BaseException:
        attempt.ended = True  # an interruption, with time left to say so
        raise
    finally:
        record.close()
        save()


def _run(request: Request, shard: int, directory: Path, emit: Callable[[Event], None]) -> None:
    job = request.rebuilt()
    if request.containers > 1:
        job.answer(directory, emit, (shard, request.containers))
    elif request.gpus() > 1:
        from vlm.compute import processes

        # The job has a working directory of its own, in which they would look for this package.
        os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(vlm.__file__).parents[1]), *sys.path])
        processes.run(job, directory, emit, request.gpus())
    else:
        job.run(directory, emit)


def conduct(
    request: Request,
    volume: Path,
    disk: Path,
    commit: Callable[[], None],
    reload: Callable[[], None],
    spawn: Callable[[int, float], str],
    wait: Callable[[str, float | None], dict],
) -> dict:
    """Sees a job through: downloads the weights, has the work done, puts its parts together.

    `spawn(shard, since)` starts `work` and gives the id of a call, `wait(id, seconds)` its value; it raises the builtin
    TimeoutError while there is none. Work that is under way or done, begun by an earlier attempt of this function or by
    a caller who was lost, is not begun again.

    Gives {"folder", "files": {path: sha256}} of the results on the volume, or {"error"} or {"traceback"} as `work`
    does, and always what it cost: {"gpu", "gpu_seconds", "dollars_per_second", "dollars"}.
    """
    reload()
    folder = volume / request.folder()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if request.from_hub:
            _download(request, commit)
        calls = _calls(folder / "calls.json", request.containers, commit, spawn, wait)
        outcomes = [wait(call, None) for call in calls]
        reload()
        for failure in ("error", "traceback"):
            for outcome in outcomes:
                if failure in outcome:
                    return {failure: outcome[failure], **spent(folder, request)}
        if request.containers == 1:
            result, files = folder / "0", outcomes[0]["files"]
        else:
            result, files = _merged(request, volume, disk, folder)
        measured = json.loads((result / "runtime.json").read_text(encoding="utf-8"))
        runtime.write(result / "runtime.json", measured | spent(folder, request))
        files |= _hashes(result, ["runtime.json"])
        commit()
        return {"folder": str(result.relative_to(volume)), "files": files, **spent(folder, request)}
    except InputError as error:
        return {"error": str(error), **spent(folder, request)}


def _calls(
    file: Path,
    shards: int,
    commit: Callable[[], None],
    spawn: Callable[[int, float], str],
    wait: Callable[[str, float | None], dict],
) -> list[str]:
    """A call for each shard: one that is under way or done, if there is one, else a new one."""
    known = json.loads(file.read_text()) if file.exists() else [None] * shards
    since = time.time()
    calls = []
    for shard, call in enumerate(known):
        if call is not None:
            try:
                if "files" not in wait(call, 0):
                    call = None
            except TimeoutError:
                pass  # under way
            except Exception:
                call = None  # failed, was cancelled, or is forgotten
        calls.append(call or spawn(shard, since))
    write_atomically(file, json.dumps(calls))
    commit()
    return calls


def _download(request: Request, commit: Callable[[], None]) -> None:
    """The model's weights and processor into the volume's cache; what is there is not asked for again."""
    from vlm import model

    model.require_files(request.rebuilt().model)
    commit()


def _merged(request: Request, volume: Path, disk: Path, folder: Path) -> tuple[Path, dict[str, str]]:
    """All shards' answers in one folder, and the results made of them."""
    lay_out(request.inputs, volume, disk)
    result = folder / "merged"
    shutil.rmtree(result, ignore_errors=True)
    result.mkdir()
    shards = [folder / str(shard) for shard in range(request.containers)]
    job = request.rebuilt()
    job.merge(shards, result)
    return result, _hashes(result, job.RESULTS)


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


class _Attempt:
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


class _Limits:
    """The money and the time that a job may take."""

    def __init__(self, request: Request, attempt: _Attempt, since: float) -> None:
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


class _Mirror:
    """Keeps a copy of a local folder on the volume: whole files, changed ones only."""

    def __init__(self, directory: Path, kept: Path) -> None:
        self._directory = directory
        self._kept = kept
        self._known: dict[str, tuple[int, int]] = {}

    def restore(self) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)
        self._directory.mkdir(parents=True)
        for path in self._kept.rglob("*"):
            if path.is_file() and not path.name.endswith(_TEMPORARY):
                target = self._directory / path.relative_to(self._kept)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, target)
        self._known = self._states()

    def save(self) -> None:
        states = self._states()
        for name, state in states.items():
            if self._known.get(name) != state:
                target = self._kept / name
                target.parent.mkdir(parents=True, exist_ok=True)
                temporary = target.with_name(target.name + _TEMPORARY)
                with suppress(FileNotFoundError):  # of several processes, another may have just removed it
                    shutil.copy2(self._directory / name, temporary)
                    temporary.replace(target)
        for name in self._known.keys() - states.keys():
            (self._kept / name).unlink(missing_ok=True)
        self._known = states

    def _states(self) -> dict[str, tuple[int, int]]:
        states = {}
        for parent, folders, files in os.walk(self._directory):
            folders[:] = [name for name in folders if name not in _LEFT_OUT]
            for name in files:
                path = Path(parent, name)
                with suppress(FileNotFoundError):  # a temporary file of the job's own
                    state = path.stat()
                    states[str(path.relative_to(self._directory))] = (state.st_size, state.st_mtime_ns)
        return states


class _Record:
    """Writes a job's events into a file and sends them, from a thread of its own, to whoever watches.

    Every event has a number that no other event of the shard has. Scalars that an earlier attempt has written are left
    out. Of progress, what comes within a second of the last is, but for the last of its count: a shard's is not full.
    """

    def __init__(self, path: Path, shard: int, attempt: int, send: Callable[[list[dict]], None]) -> None:
        earlier = read_events(path.read_bytes()) if path.exists() else []
        # Torn lines of a killed attempt are gone after this.
        path.write_text("".join(json.dumps(entry) + "\n" for entry in earlier), encoding="utf-8")
        self.done = max((entry["done"] for entry in earlier if entry["type"] == "Progress"), default=0)
        self._seen = {(e["step"], name) for e in earlier if e["type"] == "Scalars" for name in e["values"]}
        self._attempt = attempt
        self._shard = shard
        self._number = 0
        self._shown = 0.0
        self._held: Progress | None = None
        self._file = path.open("a", encoding="utf-8")
        self._send = send
        self._waiting: queue.SimpleQueue = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._forward, daemon=True)
        self._thread.start()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress):
            self.done = max(self.done, event.done)
            if self._held and (self._held.total, self._held.unit) != (event.total, event.unit):
                self._write(self._held)
            self._held = None
            now = time.monotonic()
            if 0 < event.done < event.total and now - self._shown < 1.0:
                self._held = event
                return
            self._shown = now
        elif isinstance(event, Scalars):
            event = Scalars(event.step, {n: v for n, v in event.values.items() if (event.step, n) not in self._seen})
            self._seen.update((event.step, name) for name in event.values)
            if not event.values:
                return
        self._write(event)

    def _write(self, event: Event) -> None:
        entry = {"shard": self._shard, "attempt": self._attempt, "number": self._number}
        entry |= {"type": type(event).__name__, **asdict(event)}
        self._number += 1
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()
        self._waiting.put(entry)

    def close(self) -> None:
        if self._held:
            self._write(self._held)
        self._file.close()
        self._waiting.put(None)
        self._thread.join(timeout=10)

    def _forward(self) -> None:
        ended = False
        while not ended:
            entries = [self._waiting.get()]
            with suppress(queue.Empty):
                while len(entries) < 100:
                    entries.append(self._waiting.get_nowait())
            ended = entries[-1] is None
            try:
                self._send([entry for entry in entries if entry is not None])
            except Exception as error:  # nobody has to watch; the file has it all
                print(f"events were not sent: {error!r}", file=sys.stderr)


def read_events(content: bytes) -> list[dict]:
    """The entries of a record; a line that was torn by a crash counts as not written."""
    complete, _, _ = content.rpartition(b"\n")
    return [json.loads(line) for line in complete.splitlines()]


def event_of(entry: dict) -> Event:
    kind = {"Progress": Progress, "Scalars": Scalars, "Log": Log}[entry["type"]]
    return kind(**{name: entry[name] for name in kind.__dataclass_fields__})


def lay_out(inputs: dict[str, str], volume: Path, disk: Path) -> None:
    """Puts a job's inputs where the job looks for them, and this process into the folder that they are in."""
    (disk / "repository").mkdir(parents=True, exist_ok=True)
    os.chdir(disk / "repository")
    for path, content in inputs.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        if not Path(path).is_symlink():
            Path(path).symlink_to(volume / content / "content")


def write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + _TEMPORARY)
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


_TEMPORARY = ".part"


def _hashes(directory: Path, names: list[str] | tuple[str, ...]) -> dict[str, str]:
    """The sha256 of those of the named files, and the files in the named folders, that there are."""
    hashes = {}
    for path in (directory / name for name in names):
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file():
                hashes[file.relative_to(directory).as_posix()] = sha256(file)
    return hashes


def sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _too_small(request: Request) -> str:
    return (
        f"params.yaml: modal.gpu: the memory of {request.gpu} is too small for the model; a larger one does it, such "
        "as A100-80GB (`-S modal.gpu=A100-80GB`)"
    )
