"""Runs a job on Modal: the client side. The code that runs on Modal starts in modal_app.py.

A job is one detached app with one call of `conduct`. The call's id is stored in the job's folder on this machine, and a
later process that finds it there reconnects to the call. A process that only drives Modal imports neither torch nor
transformers.
"""

import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import modal
from modal import exception

from vlm.compute import local
from vlm.compute.files import sha256, write_atomically
from vlm.compute.modal_app import app, conduct, volume
from vlm.compute.modal_errors import UNREACHABLE, explained, line
from vlm.compute.modal_events import Shown, Tracked, read_file, record, watched
from vlm.compute.request import Request
from vlm.compute.tracking import tracker
from vlm.config import gpus, pins
from vlm.config.errors import InputError
from vlm.config.events import Event, Log
from vlm.config.params import ModalParams

if TYPE_CHECKING:
    from vlm.compute import Job


@contextmanager
def run(job: "Job", params: ModalParams, live: str | None, track_with: Sequence[str]) -> Iterator[Path]:
    """Runs `job` on Modal and yields the folder with its results. Scalars go to the trackers; DVCLive uses `live`.

    Reconnects to the call of an earlier process, if there is one. Ctrl-C cancels the job on Modal; the job survives if
    this process is killed. Raises InputError for errors that the user can fix.
    """
    key = local.key(job)
    local.end_with_dvc(interrupt=False)
    with local.reserved(f"{key}-modal") as (directory, bar):
        with explained():
            result, request = _result(
                job, key, params, directory, bar, lambda: tracker(track_with, live, key) if live else nullcontext()
            )
            _download(result, directory)
        yield directory
        with suppress(exception.Error, OSError):  # leftover files do no harm
            volume.remove_file(f"jobs/{request.key}", recursive=True)
            modal.Queue.objects.delete(request.key, allow_missing=True)


def _result(
    job: "Job", key: str, params: ModalParams, directory: Path, bar: Callable[[Event], None], tracked: Tracked
) -> tuple[dict, Request]:
    """Returns the value of `conduct` for the job, and its request, which is an earlier process's if there is one."""
    call_file = directory / "call.json"
    call, request = _existing_call(call_file)
    if call is None:
        request = _request(job, key, params)
        hub = _hub_environment() if request.from_hub else {}
        call = _start(request, hub, call_file, bar)
    else:
        bar(Log(f"reconnecting to the job that is running on Modal ({request.gpu})"))
    try:
        with closing(Shown(bar, tracked)) as shown:
            for entry in record(request):
                shown(entry)
            result = watched(call, request, shown)
            shown.settle(record(request))
    except KeyboardInterrupt:
        _cancel(call, request, bar)
        call_file.unlink(missing_ok=True)
        raise
    except UNREACHABLE as error:
        raise InputError(
            f"modal: lost the connection ({line(error)}); the job keeps running, and `dvc repro` reconnects to it"
        ) from error
    except exception.Error:
        _cancel(call, request, bar)
        raise
    _stop_app()
    if "files" in result:
        bar(Log(f"{result['gpu_seconds']:g} s of {result['gpu']} on Modal, about ${result['dollars']:.2f}"))
        return result, request
    call_file.unlink()
    bar(Log(f"so far {result['gpu_seconds']:g} s of {result['gpu']} on Modal, about ${result['dollars']:.2f}"))
    if "error" in result:
        raise InputError(result["error"])
    raise RuntimeError(f"the job failed on Modal:\n{result['traceback']}")


def _request(job: "Job", key: str, params: ModalParams) -> Request:
    """Uploads the job's input files that the volume lacks, and returns the request that describes the job."""
    shared = not job.DATA_PARALLEL  # an evaluation: containers share its batches; each uses one GPU
    container = gpus.container_for(job.model, params, several=not shared)
    folder = job.model.folder
    inputs = {path: Path(path) for path in job.inputs} | ({job.model.id: folder} if folder else {})
    return Request.of(
        job,
        key=key,
        inputs={name: upload(path) for name, path in inputs.items()},
        from_hub=folder is None,
        gpu=container.gpu,
        larger_gpu=gpus.larger(container.gpu),
        gpu_count=container.count,
        cpu_cores=container.cpu_cores,
        memory_gib=container.memory_gib,
        dollars_per_second=container.dollars_per_second,
        containers=params.containers if shared else 1,
        max_dollars=params.max_dollars,
        seconds=params.timeout * 3600,
        region=params.region,
    )


def upload(path: Path) -> str:
    """Uploads a file, or a folder's visible files, unless the volume has that content; returns its folder there."""
    if path.is_dir():
        digest = pins.folder_hash(path).removeprefix("sha256:")
        files = {f"content/{name}": path / name for name in pins.visible_files(path)}
    elif path.exists():
        digest, files = sha256(path), {"content": path}
    else:
        raise InputError(f"{path}: no such file; `dvc repro` creates it, `dvc pull` downloads it")
    target = f"inputs/{digest}"
    try:
        present = {Path(entry.path).name for entry in volume.listdir(target)}
    except (exception.NotFoundError, FileNotFoundError):
        present = set()
    if "complete" not in present:
        with volume.batch_upload(force=True) as batch:
            for name, file in files.items():
                batch.put_file(file, f"/{target}/{name}")
        with volume.batch_upload(force=True) as batch:
            batch.put_file(io.BytesIO(digest.encode()), f"/{target}/complete")
    return target


def _hub_environment() -> dict[str, str]:
    """Environment variables for Hub downloads: this machine's token, and its Hub address unless it is the default."""
    from huggingface_hub import constants, get_token

    endpoint = {} if constants.ENDPOINT == "https://huggingface.co" else {"HF_ENDPOINT": constants.ENDPOINT}
    token = get_token()
    return endpoint | ({"HF_TOKEN": token} if token else {})


def _start(request: Request, environment: dict[str, str], call_file: Path, bar: Callable) -> modal.FunctionCall:
    """Starts a call of `conduct` in an app that outlives this process, and writes the call's id to `call_file`."""
    bar(Log(f"starting on Modal ({request.gpu}); the first time, this builds the image, which takes a few minutes"))
    text = request.model_dump_json()
    call = None
    try:
        with app.run(detach=True, name=f"vlm-pipeline {request.key}"):
            function = conduct
            if environment:
                function = conduct.with_options(secrets=[modal.Secret.from_dict(environment)])
            spawned = function.spawn(text)
            write_atomically(call_file, json.dumps({"call": spawned.object_id, "request": text}))
            call = spawned
    finally:
        # `app.run` swallows a Ctrl-C inside its block.
        if call is None and app.app_id is not None:
            call_file.unlink(missing_ok=True)
            app.stop()
    if call is None:
        raise KeyboardInterrupt
    return modal.FunctionCall.from_id(call.object_id)


def _existing_call(call_file: Path) -> tuple[modal.FunctionCall | None, Request | None]:
    """An earlier process's call and its request, if the call is running or has succeeded; otherwise (None, None)."""
    if not call_file.exists():
        return None, None
    values = json.loads(call_file.read_text(encoding="utf-8"))
    call = modal.FunctionCall.from_id(values["call"])
    try:
        call.get(timeout=0)
    except TimeoutError:
        pass  # running
    except (exception.AuthError, exception.ConnectionError):
        raise
    except Exception:
        return None, None  # it failed, was cancelled or has expired; finished work is on the volume
    return call, Request.model_validate_json(values["request"])


def _cancel(call: modal.FunctionCall, request: Request, bar: Callable) -> None:
    """Cancels everything that runs for the job, and reports what it has cost."""
    with suppress(exception.Error):
        call.cancel(terminate_containers=True)
    calls = f"{request.folder()}/calls.json"
    with suppress(exception.Error, FileNotFoundError):
        for id_ in json.loads(read_file(calls)):
            with suppress(exception.Error):
                modal.FunctionCall.from_id(id_).cancel(terminate_containers=True)
        volume.remove_file(calls)  # the next run starts new calls
    _stop_app()  # also ends calls that were started but not yet recorded
    seconds = sum(
        # The newest attempt ran until now; an older one that did not end was killed after it was last seen.
        (time.time() if note is notes[-1] and not note["ended"] else note["seen"]) - note["started"]
        for notes in _attempts(request).values()
        for note in notes
    )
    bar(
        Log(
            f"cancelled on Modal after {seconds * request.gpu_count:.0f} s of {request.gpu}, "
            f"about ${seconds * request.dollars_per_second:.2f}"
        )
    )


def _attempts(request: Request) -> dict[str, list[dict]]:
    """What the attempts at each shard have noted on the volume, in the order in which they started."""
    notes: dict[str, list[dict]] = {}
    with suppress(exception.Error, FileNotFoundError):
        for entry in volume.listdir(str(request.folder()), recursive=True):
            if "/attempts/" in entry.path and entry.path.endswith(".json"):
                shard = entry.path.partition("/attempts/")[0]
                notes.setdefault(shard, []).append(json.loads(read_file(entry.path)))
    return {shard: sorted(found, key=lambda note: note["started"]) for shard, found in notes.items()}


def _stop_app() -> None:
    """Stops the app, if this process started it."""
    if app.app_id is not None:
        with suppress(exception.Error):
            app.stop()


def _download(result: dict, directory: Path) -> None:
    """Downloads the results and checks the sha256 of every file. Raises InputError if a file arrives damaged twice."""
    for name, expected in result["files"].items():
        target = directory / name
        for _ in range(2):
            if target.exists() and sha256(target) == expected:
                break
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(target.name + ".part")
            with temporary.open("wb") as file:
                volume.read_file_into_fileobj(f"{result['folder']}/{name}", file)
            temporary.replace(target)
        else:
            if sha256(target) != expected:
                target.unlink()
                raise InputError(f"modal: {name} was damaged in transfer twice; `dvc repro` downloads it again")
