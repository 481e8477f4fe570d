"""Runs a job, or one shard of it, in a container with a GPU and saves its work on a volume. Independent of Modal.

The volume holds inputs/<hash>/ (input files of jobs, by content), huggingface/ (weights) and jobs/<key>/<shards>/ with
one folder for each shard's work, from which the next attempt resumes after a preempted or failed one.
"""

import os
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import vlm
from vlm.compute.attempts import Attempt, Limits
from vlm.compute.event_log import EventLog
from vlm.compute.files import Mirror, hashes
from vlm.compute.request import Request
from vlm.config.errors import InputError
from vlm.config.events import Event
from vlm.models import memory

# Errors that may not occur again, such as a lost connection. All others, except for CUDA errors (see `work`), would
# recur and are not worth the price of a second attempt.
_TRANSIENT = (ConnectionError, TimeoutError)


def work(
    request: Request,
    shard: int,
    since: float,
    volume: Path,
    disk: Path,
    commit: Callable[[], None],
    send: Callable[[list[dict]], None],
) -> dict:
    """Runs a job, or one shard of it, resuming from what an earlier attempt saved on the volume.

    `since`: when this run of the job began, in seconds since the epoch; `disk`: a folder on the container's own disk,
    for the work; `send` sends events to the watching process and may fail.
    Returns {"files": {path: sha256}} for the results or, for errors that would recur, {"error": one line for the user}
    or {"traceback": traceback of a bug}. Raises errors that a second attempt may avoid.
    """
    saved = volume / request.folder() / str(shard)
    directory = disk / "job"
    mirror = Mirror(directory, saved)
    mirror.restore()
    attempt = Attempt(directory)
    record = EventLog(directory / "events.jsonl", shard, attempt.number, send)

    def save() -> None:
        attempt.note(record.done)
        mirror.save()
        commit()

    try:
        attempt.refuse_hopeless()
        lay_out(request.inputs, volume, disk)
        save()  # so that the attempt counts whatever happens
        limits = Limits(request, attempt, since)

        def emit(event: Event) -> None:
            record(event)
            limits.check()
            if attempt.save_is_due():
                save()

        _run(request, shard, directory, emit)
        attempt.ended = True
        return {"files": hashes(directory, request.rebuilt().RESULTS)}
    except InputError as error:
        attempt.ended = True
        return {"error": str(error)}
    except _TRANSIENT:
        raise
    except Exception as error:
        attempt.ended = True
        if isinstance(error, RuntimeError) and memory.is_out_of_memory(error):
            return {"error": _too_little_memory(request)}
        if isinstance(error, RuntimeError) and "CUDA error" in str(error):
            raise
        return {"traceback": traceback.format_exc()}
    except BaseException:
        attempt.ended = True  # an interruption that leaves time to record it
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

        # The processes would look for vlm in their working directory, which `lay_out` has changed.
        os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(vlm.__file__).parents[1]), *sys.path])
        processes.run(job, directory, emit, request.gpus())
    else:
        job.run(directory, emit)


def lay_out(inputs: dict[str, str], volume: Path, disk: Path) -> None:
    """Copies a job's inputs to the paths where the job expects them, below a folder that becomes the working directory.

    They are copied because Modal cannot reload a volume that has open files.
    """
    (disk / "repository").mkdir(parents=True, exist_ok=True)
    os.chdir(disk / "repository")
    for path, content in inputs.items():
        source, target = volume / content / "content", Path(path)
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copyfile(source, target)


def _too_little_memory(request: Request) -> str:
    return (
        f"params.yaml: modal.gpu: {request.gpu} has too little memory for the model; choose a larger GPU, such as "
        "A100-80GB (`-S modal.gpu=A100-80GB`)"
    )
