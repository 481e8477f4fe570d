"""The app on Modal: its image, its volume, and the two functions that run there."""

import os
from pathlib import Path

import modal

import vlm
from vlm.compute import conductor, worker
from vlm.compute.modal_errors import UNREACHABLE, failure
from vlm.compute.request import Request

PYTHON = "3.11"  # the oldest that pyproject.toml allows
_MOUNT, _DISK = Path("/volume"), Path("/work")
_DAY = 24 * 3600  # seconds; the longest that Modal lets an attempt take
_GRACE = 300  # seconds that Modal gives a job beyond its own limit
_RETRIES = modal.Retries(initial_delay=0.0, max_retries=10)  # of preempted and crashed attempts

app = modal.App("vlm-pipeline")
volume = modal.Volume.from_name("vlm-pipeline", create_if_missing=True)
image = (
    modal.Image.debian_slim(python_version=PYTHON)
    .uv_pip_install(requirements=[str(Path(vlm.__file__).parents[1] / "requirements.lock")])
    # Only the cache is on the volume: hf_xet keeps a log file open in HF_HOME, and Modal refuses to reload a volume on
    # which files are open.
    .env({"HF_HUB_CACHE": str(_MOUNT / "huggingface" / "hub"), "HF_HOME": "/tmp/huggingface"})
    .add_local_python_source("vlm")
)


@app.function(
    image=image, volumes={_MOUNT: volume}, timeout=_DAY, retries=_RETRIES, single_use_containers=True, gpu="L4"
)
def work(request: str, shard: int, since: float) -> dict:
    """worker.work in a container of its own, with a GPU."""
    asked = Request.model_validate_json(request)
    volume.reload()
    os.environ["HF_HUB_OFFLINE"] = "1"  # the weights are there; nothing else is to be asked for

    def send(entries: list[dict]) -> None:
        if entries:
            events_of(asked.key).put_many(entries, block=False)

    return worker.work(asked, shard, since, _MOUNT, _DISK, volume.commit, send)


@app.function(image=image, volumes={_MOUNT: volume}, timeout=_DAY, retries=_RETRIES, single_use_containers=True)
def conduct(request: str) -> dict:
    """conductor.conduct, which outlives the machine that called it."""
    asked = Request.model_validate_json(request)
    gpu_work = work.with_options(**options(asked))

    def spawn(shard: int, since: float) -> str:
        return gpu_work.spawn(request, shard, since).object_id

    def wait(call: str, seconds: float | None) -> dict:
        try:
            return modal.FunctionCall.from_id(call).get(timeout=seconds)
        except UNREACHABLE:
            raise  # it is not the work that failed
        except Exception as error:
            if isinstance(error, TimeoutError) and seconds is not None:
                raise
            return {"error": failure(error)}

    return conductor.conduct(asked, _MOUNT, _DISK, volume.commit, volume.reload, spawn, wait)


def options(request: Request) -> dict:
    """How Modal is to run the work. Its own limit of time is a second line: the work looks at the clock itself."""
    seconds = request.seconds
    if request.max_dollars is not None:
        seconds = min(seconds, request.max_dollars / request.dollars_per_second)
    wanted = {"gpu": request.gpu, "timeout": min(_DAY, int(seconds) + _GRACE)}
    return wanted | ({"region": request.region} if request.region else {})


def events_of(key: str) -> modal.Queue:
    """The queue of a job's events. It has a name, because a second process could not find an ephemeral one."""
    return modal.Queue.from_name(key, create_if_missing=True)
