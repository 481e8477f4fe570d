"""What runs in a container with a GPU: a job, or its share of one, saved on a volume as it goes. Knows only paths.

On the volume: inputs/<hash>/ (what jobs read, by content), huggingface/ (weights), and jobs/<key>/<shards>/ with a
folder for each shard's work, which a preempted or failed attempt leaves to the next one.
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

# A second attempt may get past these: a lost connection, a failing GPU. Everything else would fail again, at a GPU's
# price.
_PASSING = (ConnectionError, TimeoutError)


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
    mirror = Mirror(directory, kept)
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
        save()  # so that the attempt counts, whatever comes
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
    except _PASSING:
        raise
    except Exception as error:
        attempt.ended = True
        if isinstance(error, RuntimeError) and memory.is_out_of_memory(error):
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


def lay_out(inputs: dict[str, str], volume: Path, disk: Path) -> None:
    """Copies a job's inputs to where the job looks for them, and makes their folder the working directory.

    They are copied because Modal refuses to reload a volume on which files are open.
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


def _too_small(request: Request) -> str:
    return (
        f"params.yaml: modal.gpu: the memory of {request.gpu} is too small for the model; a larger one does it, such "
        "as A100-80GB (`-S modal.gpu=A100-80GB`)"
    )
