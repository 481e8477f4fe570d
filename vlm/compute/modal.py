"""Runs a job on Modal: the app, and this machine's side of it. What runs in its containers is in remote.py.

A job is one detached app with one call of `conduct`, whose id is kept in the job's folder here, so that a process that
finds one there goes on watching it. A process that only drives Modal imports neither torch nor transformers.
"""

import io
import json
import os
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import modal
from modal import exception as refused

import vlm
from vlm import pinned
from vlm.compute import local, prices, remote
from vlm.compute.tracking import tracker
from vlm.errors import InputError
from vlm.events import Event, Log, Progress, Scalars
from vlm.params import ModalParams

if TYPE_CHECKING:
    from vlm.compute import Job

PYTHON = "3.11"  # the oldest that pyproject.toml allows
_MOUNT, _DISK = Path("/volume"), Path("/work")
_DAY = 24 * 3600  # seconds; the longest that Modal lets an attempt take
_GRACE = 300  # seconds that Modal gives a job beyond its own limit
_PATIENCE = 60.0  # seconds without a network that a watching process bears
_RETRIES = modal.Retries(initial_delay=0.0, max_retries=10)  # of preempted and crashed attempts
_Tracked = Callable[[], AbstractContextManager]  # gives a consumer of scalars, or None if nobody wants them
_UNREACHABLE = (refused.ConnectionError, refused.ServiceError, refused.InternalError, ConnectionError)

app = modal.App("vlm-pipeline")
volume = modal.Volume.from_name("vlm-pipeline", create_if_missing=True)
image = (
    modal.Image.debian_slim(python_version=PYTHON)
    .uv_pip_install(requirements=[str(Path(vlm.__file__).parents[1] / "requirements.lock")])
    .env({"HF_HOME": str(_MOUNT / "huggingface")})
    .add_local_python_source("vlm")
)


@app.function(
    image=image, volumes={_MOUNT: volume}, timeout=_DAY, retries=_RETRIES, single_use_containers=True, gpu="L4"
)
def work(request: str, shard: int, since: float) -> dict:
    """remote.work in a container of its own, with a GPU."""
    asked = remote.Request.model_validate_json(request)
    volume.reload()
    os.environ["HF_HUB_OFFLINE"] = "1"  # the weights are there; nothing else is to be asked for

    def send(entries: list[dict]) -> None:
        if entries:
            _events(asked.key).put_many(entries, block=False)

    return remote.work(asked, shard, since, _MOUNT, _DISK, volume.commit, send)


@app.function(image=image, volumes={_MOUNT: volume}, timeout=_DAY, retries=_RETRIES, single_use_containers=True)
def conduct(request: str) -> dict:
    """remote.conduct, which outlives the machine that called it."""
    asked = remote.Request.model_validate_json(request)
    worker = work.with_options(**options(asked))

    def spawn(shard: int, since: float) -> str:
        return worker.spawn(request, shard, since).object_id

    def wait(call: str, seconds: float | None) -> dict:
        try:
            return modal.FunctionCall.from_id(call).get(timeout=seconds)
        except _UNREACHABLE:
            raise  # it is not the work that failed
        except Exception as error:
            if isinstance(error, TimeoutError) and seconds is not None:
                raise
            return {"error": failure(error)}

    return remote.conduct(asked, _MOUNT, _DISK, volume.commit, volume.reload, spawn, wait)


def options(request: remote.Request) -> dict:
    """How Modal is to run the work. Its own limit of time is a second line: the work looks at the clock itself."""
    seconds = request.seconds
    if request.max_dollars is not None:
        seconds = min(seconds, request.max_dollars / request.dollars_per_second)
    wanted = {"gpu": request.gpu, "timeout": min(_DAY, int(seconds) + _GRACE)}
    return wanted | ({"region": request.region} if request.region else {})


@contextmanager
def run(job: "Job", params: ModalParams, live: str | None, track_with: Sequence[str]) -> Iterator[Path]:
    """Runs `job` on Modal and gives a folder of its results. Scalars go to trackers, DVCLive's to `live`.

    Goes on with a call that an earlier process has begun. Ctrl-C ends what runs there; a lost process does not.
    Raises InputError for what the user can put right.
    """
    key = local.key(job)
    with local.reserved(f"{key}-modal") as (directory, bar):
        with _explained():
            result, request = _result(
                job, key, params, directory, bar, lambda: tracker(track_with, live, key) if live else nullcontext()
            )
            _download(result, directory)
        yield directory
        with suppress(refused.Error, OSError):  # what stays there does no harm
            volume.remove_file(f"jobs/{request.key}", recursive=True)
            modal.Queue.objects.delete(request.key, allow_missing=True)


def _result(
    job: "Job", key: str, params: ModalParams, directory: Path, bar: Callable[[Event], None], tracked: "_Tracked"
) -> tuple[dict, remote.Request]:
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
        with closing(_Shown(bar, tracked)) as shown:
            for entry in _record(request):
                shown(entry)
            result = _watched(call, request, shown)
            shown.settle(_record(request))
    except KeyboardInterrupt:
        _cancel(call, request, bar)
        kept.unlink(missing_ok=True)
        raise
    except _UNREACHABLE as error:
        raise InputError(
            f"modal: the connection is lost ({_line(error)}); the job goes on there, and `dvc repro` finds it again"
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


def _request(job: "Job", key: str, params: ModalParams) -> remote.Request:
    """Uploads what the job reads, if it is not there, and says how to run it."""
    shared = not job.DATA_PARALLEL  # an evaluation: containers share its batches, but it runs on one GPU
    gpu, price = prices.gpu_of(job.model, params, several=not shared)
    folder = job.model.folder
    inputs = [*job.inputs, *([job.model.id] if folder else [])]
    return remote.Request.of(
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
        digest = pinned.folder_hash(path).removeprefix("sha256:")
        files = {f"content/{name}": path / name for name in pinned.visible_files(path)}
    elif path.exists():
        digest, files = remote.sha256(path), {"content": path}
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


def _started(request: remote.Request, environment: dict[str, str], kept: Path, bar: Callable) -> modal.FunctionCall:
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
            remote.write_atomically(kept, json.dumps({"call": spawned.object_id, "request": text}))
            call = spawned
    finally:
        # Modal swallows a Ctrl-C inside that block.
        if call is None and app.app_id is not None:
            kept.unlink(missing_ok=True)
            app.stop()
    if call is None:
        raise KeyboardInterrupt
    return modal.FunctionCall.from_id(call.object_id)


def _earlier(kept: Path) -> tuple[modal.FunctionCall | None, remote.Request | None]:
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
    return call, remote.Request.model_validate_json(values["request"])


def _watched(call: modal.FunctionCall, request: remote.Request, shown: "_Shown") -> dict:
    """The call's value, when it is there; events are shown as they come."""
    events = _events(request.key)
    reached = time.monotonic()
    while True:
        try:
            entries = _waiting(events)
            for entry in entries:
                shown(entry)
            if not entries or time.monotonic() - reached > 1:
                value = call.get(timeout=0)
                for entry in _waiting(events):
                    shown(entry)
                return value
        except TimeoutError:
            reached = time.monotonic()
        except _UNREACHABLE:
            if time.monotonic() - reached > _PATIENCE:
                raise
            time.sleep(1)


def _waiting(events: modal.Queue) -> list[dict]:
    with suppress(queue.Empty, refused.NotFoundError):
        return events.get_many(100, timeout=0.5) or []
    return []


def _events(name: str) -> modal.Queue:
    """The queue of a job's events. It is named, for an ephemeral one would be lost to a second process."""
    return modal.Queue.from_name(name, create_if_missing=True)


def _record(request: remote.Request) -> list[dict]:
    """What the volume holds of the job's events: all of them, when the job has ended."""
    entries = []
    for shard in range(request.containers):
        with suppress(refused.NotFoundError, FileNotFoundError):
            entries += remote.read_events(_read(f"{request.folder()}/{shard}/events.jsonl"))
    return entries


def _read(path: str) -> bytes:
    return b"".join(volume.read_file(path))


def _cancel(call: modal.FunctionCall, request: remote.Request, bar: Callable) -> None:
    """Ends everything that runs for the job, and says what it has cost."""
    with suppress(refused.Error):
        call.cancel(terminate_containers=True)
    calls = f"{request.folder()}/calls.json"
    with suppress(refused.Error, FileNotFoundError):
        for one in json.loads(_read(calls)):
            with suppress(refused.Error):
                modal.FunctionCall.from_id(one).cancel(terminate_containers=True)
        volume.remove_file(calls)  # the next run begins them anew
    _stop()  # whatever it had begun and not yet noted
    seconds = 0.0
    with suppress(refused.Error, FileNotFoundError):
        for entry in volume.listdir(str(request.folder()), recursive=True):
            if "/attempts/" in entry.path and entry.path.endswith(".json"):
                note = json.loads(_read(entry.path))
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


class _Shown:
    """Shows a job's events as they come from its containers, none twice, and puts them right at the end."""

    def __init__(self, bar: Callable[[Event], None], tracked: "_Tracked") -> None:
        self._bar = bar
        self._tracked = tracked
        self._open = ExitStack()
        self._track = self._open.enter_context(tracked())
        self._known: set[tuple[int, int, int]] = set()
        self._done: dict[tuple[int, str], dict[int, int]] = {}  # by total and unit, in the job's order; by container
        self._over: set[tuple[int, str]] = set()
        self._points: list[tuple[int, str, float]] = []

    def __call__(self, entry: dict) -> None:
        number = (entry["shard"], entry["attempt"], entry["number"])
        if number in self._known:
            return
        self._known.add(number)
        event = remote.event_of(entry)
        if isinstance(event, Progress):
            self._count(entry["shard"], event)
            self._advance()
        elif isinstance(event, Log):
            self._bar(event)
        elif self._track:
            self._draw(event)

    def settle(self, record: list[dict]) -> None:
        """Shows the progress that was missed; tracks the scalars anew if they did not come as the record has them."""
        for entry in record:
            if entry["type"] == "Progress":
                self._count(entry["shard"], remote.event_of(entry))
        self._advance()
        events = [remote.event_of(entry) for entry in record if entry["type"] == "Scalars"]
        recorded = [(event.step, name, value) for event in events for name, value in event.values.items()]
        if self._track and recorded != self._points:
            self.close()
            self._track = self._open.enter_context(self._tracked())  # DVCLive begins with an empty folder
            self._points = []
            for event in events:
                self._draw(event)

    def close(self) -> None:
        self._open.close()

    def _count(self, shard: int, event: Progress) -> None:
        self._done.setdefault((event.total, event.unit), {})[shard] = event.done

    def _advance(self) -> None:
        """Draws the first count that is not full. Containers are not in step: one that is ahead is not shown yet."""
        for (total, unit), done in self._done.items():
            if (total, unit) not in self._over:
                self._bar(Progress(sum(done.values()), total, unit))
                if sum(done.values()) < total:
                    return
                self._over.add((total, unit))

    def _draw(self, event: Scalars) -> None:
        self._points += [(event.step, name, value) for name, value in event.values.items()]
        self._track(event)


def _download(result: dict, directory: Path) -> None:
    """Brings the results here, each file complete and with the hash that it had there, or not at all."""
    for name, expected in result["files"].items():
        target = directory / name
        for _ in range(2):
            if target.exists() and remote.sha256(target) == expected:
                break
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(target.name + ".part")
            with temporary.open("wb") as file:
                volume.read_file_into_fileobj(f"{result['folder']}/{name}", file)
            temporary.replace(target)
        else:
            if remote.sha256(target) != expected:
                target.unlink()
                raise InputError(f"modal: {name} came back damaged, twice; `dvc repro` fetches it again")


@contextmanager
def _explained() -> Iterator[None]:
    """Turns what Modal refuses into a line that says what to do."""
    try:
        yield
    except (refused.Error, ConnectionError) as error:
        raise InputError(failure(error)) from error


def failure(error: Exception) -> str:
    """What went wrong at Modal, and the remedy, in a line."""
    reason = _line(error)
    remedies = {
        refused.AuthError: "there is no valid token here: `modal setup` makes one; `compute: local` does without Modal",
        (refused.ConnectionError, ConnectionError): f"cannot be reached ({reason}): check the network and try again",
        refused.ImageBuildError: (
            f"the image could not be built ({reason}): its log is on the app's page at modal.com; it is "
            "made of requirements.lock, which `make lock` writes"
        ),
        refused.FunctionTimeoutError: f"a container ran into its time limit ({reason}): a larger modal.timeout helps",
        refused.PermissionDeniedError: f"refused it ({reason}): the token's account may not do this",
        refused.ResourceExhaustedError: f"refused it ({reason}): a limit of the account is reached; see modal.com",
        refused.VersionError: f"this client is too old ({reason}): `uv sync` or `pip install -U modal`",
        refused.RemoteError: (
            f"a container ended and could not be started again ({reason}); if its memory ran out, a smaller batch_size "
            "or another modal.gpu helps; its log is on the app's page at modal.com"
        ),
    }
    for kind, remedy in remedies.items():
        if isinstance(error, kind):
            return f"modal: {remedy}"
    return f"modal: {type(error).__name__}: {reason}"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
