"""Runs a job, or one shard of it, in a container with a GPU and saves its work on a volume. Independent of Modal.

The volume holds inputs/<hash>/ (input files of jobs, by content), huggingface/ (weights) and jobs/<key>/<shards>/ with
one folder for each shard's work, from which the next attempt resumes after a preempted or failed one. Everything that
the work reads is copied from the volume first, because Modal cannot reload or commit a volume that has open files.
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
from vlm.compute.saving import Saves
from vlm.config.errors import InputError
from vlm.config.events import Event
from vlm.models import memory

HUB_CACHE = Path("huggingface", "hub")  # on the volume and on the container's disk
# Errors that may not occur again, such as a lost connection. All others, except for CUDA errors (see `_failure`), would
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
    directory = disk / "job"
    mirror = Mirror(directory, volume / request.folder() / str(shard))
    mirror.restore()
    attempt = Attempt(directory)
    record = EventLog(directory / "events.jsonl", shard, attempt.number, send)
    saves = Saves(mirror, attempt, commit)
    try:
        attempt.refuse_hopeless()
        saves.save(record.done)  # so that the attempt counts whatever happens
        lay_out(request.inputs, volume, disk)
        copy_weights(request, volume, disk)
        limits = Limits(request, attempt, since)

        def emit(event: Event) -> None:
            record(event)
            limits.check()
            saves.save_if_due(record.done)

        _run(request, shard, directory, emit)
        attempt.ended = True
        return {"files": hashes(directory, request.rebuilt().RESULTS)}
    except BaseException as error:
        outcome = _failure(error, request, attempt, record.done)
        if outcome is None:
            raise
        return outcome
    finally:
        record.close()
        saves.save(record.done)


def _failure(error: BaseException, request: Request, attempt: Attempt, done: int) -> dict | None:
    """What `work` returns for an error; None for an error that a second attempt may avoid, and for an interruption."""
    attempt.ended = not isinstance(error, _TRANSIENT)
    if isinstance(error, InputError):
        return {"error": str(error)}
    if isinstance(error, _TRANSIENT) or not isinstance(error, Exception):
        return None
    if isinstance(error, RuntimeError) and memory.is_out_of_memory(error):
        return {"error": _too_little_memory(request)}
    if isinstance(error, RuntimeError) and "CUDA error" in str(error):
        # It may be the GPU's fault, and the next attempt gets another one. Twice at the same point, it is the job's.
        attempt.cuda_error = True
        if not attempt.repeats_cuda_error(done):
            return None
        traceback.print_exc()
        reason = next(line.strip() for line in str(error).splitlines() if "CUDA error" in line)
        return {
            "error": f"modal: two attempts ended at the same point with {reason!r}; the container's log on the app's "
            "page at modal.com has the traceback; try another modal.gpu, or a smaller batch_size"
        }
    return {"traceback": traceback.format_exc()}


def _run(request: Request, shard: int, directory: Path, emit: Callable[[Event], None]) -> None:
    job = request.rebuilt()
    if request.containers > 1:
        job.answer(directory, emit, (shard, request.containers))
    elif request.gpu_count > 1:
        from vlm.compute import processes

        # The processes would look for vlm in their working directory, which `lay_out` has changed.
        os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(vlm.__file__).parents[1]), *sys.path])
        processes.run(job, directory, emit, request.gpu_count)
    else:
        job.run(directory, emit)


def lay_out(inputs: dict[str, str], volume: Path, disk: Path) -> None:
    """Copies a job's inputs to the paths where the job expects them; the folder above becomes the working directory."""
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


def copy_weights(request: Request, volume: Path, disk: Path) -> None:
    """Copies the snapshot of the model's weights, if it is from the Hub, from the volume's cache to one on the disk.

    torch maps the files of weights into memory for as long as it loads them, on a CPU even longer; on the volume they
    would be open files during a commit.
    """
    if request.from_hub:
        model = request.rebuilt().model
        snapshot = Path(HUB_CACHE, "models--" + model.id.replace("/", "--"), "snapshots", model.revision)
        shutil.copytree(volume / snapshot, disk / snapshot, dirs_exist_ok=True)  # follows the links to files


def _too_little_memory(request: Request) -> str:
    larger = f"choose a larger GPU, such as {request.larger_gpu}, or " if request.larger_gpu else ""
    return (
        f"params.yaml: modal.gpu: {request.gpu} has too little memory for this job; {larger}lower image.max_tokens or "
        "evaluation.batch_size"
    )
