"""Runs a job on Modal: this machine's side of it. What runs there begins in modal_app.py.

A job is one detached app with one call of `conduct`, whose id is kept in the job's folder here, so that a process that
finds one there goes on watching it. A process that only drives Modal imports neither torch nor transformers.
"""

import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import modal
from modal import exception as refused

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
    """Runs `job` on Modal and gives a folder of its results. Scalars go to trackers, DVCLive's to `live`.

    Goes on with a call that an earlier process has begun. Ctrl-C ends what runs there; a lost process does not.
    Raises InputError for what the user can put right.
    """
    key = local.key(job)
    with local.reserved(f"{key}-modal") as (directory, bar):
        with explained():
            result, request = _result(
                job, key, params, directory, bar, lambda: tracker(track_with, live, key) if live else nullcontext()
            )
            _download(result, directory)
        yield directory
        with suppress(refused.Error, OSError):  # what stays there does no harm
            volume.remove_file(f"jobs/{request.key}", recursive=True)
            modal.Queue.objects.delete(request.key, allow_missing=True)


def _result(
    job: "Job", key: str, params: ModalParams, directory: Path, bar: Callable[[Event], None], tracked: Tracked
) -> tuple[dict, Request]:
    """What `conduct` gives for the job, and the request that it was given: an earlier process's, if there is one."""
    kept = directory / "call.json"
    call, request = _earlier(kept)
    if call is None:
        request = _request(job, key, params)
        hub = _hub_environment() if request.from_hub else {}
        call = _started(request, hub, kept, bar)
    else:
        bar(Log(f"going on with the job that runs on Modal ({request.gpu})"))
    try:
        with closing(Shown(bar, tracked)) as shown:
            for entry in record(request):
                shown(entry)
            result = watched(call, request, shown)
            shown.settle(record(request))
    except KeyboardInterrupt:
        _cancel(call, request, bar)
        kept.unlink(missing_ok=True)
        raise
    except UNREACHABLE as error:
        raise InputError(
            f"modal: the connection is lost ({line(error)}); the job goes on there, and `dvc repro` finds it again"
        ) from error
    except refused.Error:
        _cancel(call, request, bar)
        raise
    _stop()
    if "files" in result:
        bar(Log(f"{result['gpu_seconds']:g} s of {result['gpu']} on Modal, about ${result['dollars']:.2f}"))
        return result, request
    kept.unlink()
    bar(Log(f"until here {result['gpu_seconds']:g} s of {result['gpu']} on Modal, about ${result['dollars']:.2f}"))
    if "error" in result:
        raise InputError(result["error"])
    raise RuntimeError(f"the job failed on Modal:\n{result['traceback']}")


def _request(job: "Job", key: str, params: ModalParams) -> Request:
    """Uploads what the job reads, if it is not there, and says how to run it."""
    shared = not job.DATA_PARALLEL  # an evaluation: containers share its batches, but it runs on one GPU
    gpu, price = gpus.gpu_of(job.model, params, several=not shared)
    folder = job.model.folder
    inputs = [*job.inputs, *([job.model.id] if folder else [])]
    return Request.of(
        job,
        key=key,
        inputs={path: upload(Path(path)) for path in inputs},
        from_hub=folder is None,
        gpu=gpu,
        dollars_per_second=price,
        containers=params.containers if shared else 1,
        max_dollars=params.max_dollars,
        seconds=params.timeout * 3600,
        region=params.region,
    )


def upload(path: Path) -> str:
    """The folder of the volume that holds the file, or the visible files of the folder: by content, and once."""
    if path.is_dir():
        digest = pins.folder_hash(path).removeprefix("sha256:")
        files = {f"content/{name}": path / name for name in pins.visible_files(path)}
    elif path.exists():
        digest, files = sha256(path), {"content": path}
    else:
        raise InputError(f"{path}: no such file; `dvc repro` or `dvc pull` brings it")
    target = f"inputs/{digest}"
    try:
        there = {Path(entry.path).name for entry in volume.listdir(target)}
    except (refused.NotFoundError, FileNotFoundError):
        there = set()
    if "complete" not in there:
        with volume.batch_upload(force=True) as batch:
            for name, file in files.items():
                batch.put_file(file, f"/{target}/{name}")
        with volume.batch_upload(force=True) as batch:
            batch.put_file(io.BytesIO(digest.encode()), f"/{target}/complete")
    return target


def _hub_environment() -> dict[str, str]:
    """What downloading from the Hub takes of this machine: its token and its address of the Hub, if it has any."""
    from huggingface_hub import constants, get_token

    endpoint = {} if constants.ENDPOINT == "https://huggingface.co" else {"HF_ENDPOINT": constants.ENDPOINT}
    token = get_token()
    return endpoint | ({"HF_TOKEN": token} if token else {})


def _started(request: Request, environment: dict[str, str], kept: Path, bar: Callable) -> modal.FunctionCall:
    """A call of `conduct` in an app that does not end with this process; its id is in `kept`."""
    bar(Log(f"starting on Modal ({request.gpu}); the first time, its image is built, which takes some minutes"))
    text = request.model_dump_json()
    call = None
    try:
        with app.run(detach=True, name=f"vlm-pipeline {request.key}"):
            function = conduct
            if environment:
                function = conduct.with_options(secrets=[modal.Secret.from_dict(environment)])
            spawned = function.spawn(text)
            write_atomically(kept, json.dumps({"call": spawned.object_id, "request": text}))
            call = spawned
    finally:
        # Modal swallows a Ctrl-C inside that block.
        if call is None and app.app_id is not None:
            kept.unlink(missing_ok=True)
            app.stop()
    if call is None:
        raise KeyboardInterrupt
    return modal.FunctionCall.from_id(call.object_id)


def _earlier(kept: Path) -> tuple[modal.FunctionCall | None, Request | None]:
    """The call that an earlier process has begun, if it is under way or has ended well, and what it was asked."""
    if not kept.exists():
        return None, None
    values = json.loads(kept.read_text(encoding="utf-8"))
    call = modal.FunctionCall.from_id(values["call"])
    try:
        call.get(timeout=0)
    except TimeoutError:
        pass  # under way
    except (refused.AuthError, refused.ConnectionError):
        raise
    except Exception:
        return None, None  # failed, was cancelled or is forgotten: what it has finished is on the volume
    return call, Request.model_validate_json(values["request"])


def _cancel(call: modal.FunctionCall, request: Request, bar: Callable) -> None:
    """Ends everything that runs for the job, and says what it has cost."""
    with suppress(refused.Error):
        call.cancel(terminate_containers=True)
    calls = f"{request.folder()}/calls.json"
    with suppress(refused.Error, FileNotFoundError):
        for one in json.loads(read_file(calls)):
            with suppress(refused.Error):
                modal.FunctionCall.from_id(one).cancel(terminate_containers=True)
        volume.remove_file(calls)  # the next run begins them anew
    _stop()  # whatever it had begun and not yet noted
    seconds = 0.0
    with suppress(refused.Error, FileNotFoundError):
        for entry in volume.listdir(str(request.folder()), recursive=True):
            if "/attempts/" in entry.path and entry.path.endswith(".json"):
                note = json.loads(read_file(entry.path))
                seconds += (note["seen"] if note["ended"] else time.time()) - note["started"]
    bar(
        Log(
            f"cancelled on Modal after {seconds * request.gpus():.0f} s of {request.gpu}, "
            f"about ${seconds * request.dollars_per_second:.2f}"
        )
    )


def _stop() -> None:
    """Ends this process's app, if it has started one."""
    if app.app_id is not None:
        with suppress(refused.Error):
            app.stop()


def _download(result: dict, directory: Path) -> None:
    """Brings the results here, each file complete and with the hash that it had there, or not at all."""
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
                raise InputError(f"modal: {name} came back damaged, twice; `dvc repro` fetches it again")
