"""The Modal app: its image, its volume and its two functions."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import modal

import vlm
from vlm.compute import conductor, worker
from vlm.compute.modal_errors import UNREACHABLE, failure, line
from vlm.compute.request import Request
from vlm.config import cores
from vlm.config.errors import InputError

PYTHON = "3.11"  # the oldest version that pyproject.toml allows
_MOUNT, _DISK = Path("/volume"), Path("/work")
_DAY = 24 * 3600  # seconds; Modal's maximum for an attempt
_GRACE = 300  # seconds by which Modal's time limit exceeds the job's own
_RETRIES = modal.Retries(initial_delay=0.0, max_retries=10)  # for preempted and crashed attempts

app = modal.App("vlm-pipeline", include_source=False)  # which would add files that are not Python; see `image`
volume = modal.Volume.from_name("vlm-pipeline", create_if_missing=True)
image = (
    modal.Image.debian_slim(python_version=PYTHON)
    .uv_pip_install(requirements=[str(Path(vlm.__file__).parents[1] / "requirements.lock")])
    # Only the cache is on the volume: hf_xet keeps a log file open in HF_HOME, and Modal cannot reload a volume
    # with open files.
    .env({"HF_HUB_CACHE": str(_MOUNT / worker.HUB_CACHE), "HF_HOME": "/tmp/huggingface"})
    .add_local_python_source("vlm")
)


@app.function(
    image=image, volumes={_MOUNT: volume}, timeout=_DAY, retries=_RETRIES, single_use_containers=True, gpu="L4"
)
def work(request: str, shard: int, since: float) -> dict:
    """Runs worker.work in its own container with a GPU."""
    parsed = Request.model_validate_json(request)
    # `conduct` has downloaded the weights, and `worker.work` copies them from the volume. Set before huggingface_hub
    # is imported, which reads these once.
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(_DISK / worker.HUB_CACHE)}
    # The container may see all cores of its host. Modal reserves physical cores, which have two logical CPUs each.
    os.environ[cores.LIMIT] = str(2 * parsed.cpu_cores)
    cores.share()

    def send(entries: list[dict]) -> None:
        if entries:
            events_of(parsed.key).put_many(entries, block=False)

    try:
        _reload()
        return worker.work(parsed, shard, since, _MOUNT, _DISK, _commit, send)
    except InputError as error:
        return {"error": str(error)}


@app.function(image=image, volumes={_MOUNT: volume}, timeout=_DAY, retries=_RETRIES, single_use_containers=True)
def conduct(request: str) -> dict:
    """Runs conductor.conduct, independently of the machine that called it."""
    parsed = Request.model_validate_json(request)
    gpu_work = work.with_options(**options(parsed))

    def spawn(shard: int, since: float) -> str:
        return gpu_work.spawn(request, shard, since).object_id

    def wait(call: str, seconds: float | None) -> dict:
        try:
            return modal.FunctionCall.from_id(call).get(timeout=seconds)
        except UNREACHABLE:
            raise  # not a failure of the work itself
        except Exception as error:
            if isinstance(error, TimeoutError) and seconds is not None:
                raise
            return {"error": failure(error)}

    return conductor.conduct(parsed, _MOUNT, _DISK, _commit, _reload, spawn, wait)


def _not_refused(operation: Callable[[], None]) -> None:
    """Commits or reloads the volume. Raises InputError if Modal refuses to, because it would at every attempt.

    modal raises RuntimeError if a file on the volume is open, after another conflict, and if the volume was deleted.
    """
    try:
        operation()
    except RuntimeError as error:
        raise InputError(f"modal: the volume can be neither committed nor reloaded: {line(error)}") from error


_commit = partial(_not_refused, volume.commit)
_reload = partial(_not_refused, volume.reload)


def options(request: Request) -> dict:
    """The options of `work`. Modal's time limit is only a fallback, because the work checks its own limits."""
    seconds = request.seconds
    if request.max_dollars is not None:
        # Each container gets an equal part of the money, as in Limits.check.
        seconds = min(seconds, request.max_dollars / request.dollars_per_second / request.containers)
    chosen = {
        "gpu": request.gpu,
        "cpu": request.cpu_cores,  # without it, Modal reserves an eighth of a core, too little to feed a GPU
        "memory": request.memory_gib * 1024,  # MiB
        "timeout": min(_DAY, int(seconds) + _GRACE),
    }
    return chosen | ({"region": request.region} if request.region else {})


def events_of(key: str) -> modal.Queue:
    """The queue of a job's events. It is named because a second process could not find an ephemeral queue."""
    return modal.Queue.from_name(key, create_if_missing=True)
