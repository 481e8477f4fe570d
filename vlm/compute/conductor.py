"""Coordinates a job on Modal, in a container without a GPU: weights, work in GPU containers, results."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from vlm.compute.attempts import spent
from vlm.compute.files import hashes, write_atomically
from vlm.compute.request import Request
from vlm.compute.worker import lay_out
from vlm.config.errors import InputError
from vlm.models import runtime


def conduct(
    request: Request,
    volume: Path,
    disk: Path,
    commit: Callable[[], None],
    reload: Callable[[], None],
    spawn: Callable[[int, float], str],
    wait: Callable[[str, float | None], dict],
) -> dict:
    """Runs a job from start to end: downloads the weights, starts the work, merges the results of all shards.

    `spawn(shard, since)` starts `work` and returns the call's id. `wait(id, seconds)` returns the call's value, or
    raises the builtin TimeoutError if there is none yet. Calls that are running or done, whether an earlier attempt of
    this function started them or a caller that was lost, are not started again.

    Returns {"folder", "files": {path: sha256}} for the results on the volume, or {"error"} or {"traceback"} like
    `work`, and in every case the cost: {"gpu", "gpu_seconds", "containers", "dollars_per_second", "dollars"}.
    """
    folder = volume / request.folder()
    try:
        reload()
        folder.mkdir(parents=True, exist_ok=True)
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
            result, files = _merge(request, volume, disk, folder)
        measured = json.loads((result / "runtime.json").read_text(encoding="utf-8"))
        runtime.write(result / "runtime.json", measured | spent(folder, request))
        files |= hashes(result, ["runtime.json"])
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
    """The id of one call for each shard: an existing call that is running or done, otherwise a new one."""
    known = json.loads(file.read_text()) if file.exists() else [None] * shards
    since = time.time()
    calls = []
    for shard, call in enumerate(known):
        if call is not None:
            try:
                if "files" not in wait(call, 0):
                    call = None
            except TimeoutError:
                pass  # running
            except Exception:
                call = None  # it failed, was cancelled or has expired
        calls.append(call or spawn(shard, since))
    write_atomically(file, json.dumps(calls))
    commit()
    return calls


def _download(request: Request, commit: Callable[[], None]) -> None:
    """Downloads the model's weights and processor into the volume's cache, except for files that are already in it."""
    from vlm.models import loading

    loading.require_files(request.rebuilt().model)
    commit()


def _merge(request: Request, volume: Path, disk: Path, folder: Path) -> tuple[Path, dict[str, str]]:
    """Merges the records of all shards; returns the folder of the results and their hashes."""
    lay_out(request.inputs, volume, disk)
    result = folder / "merged"
    shutil.rmtree(result, ignore_errors=True)
    result.mkdir()
    shards = [folder / str(shard) for shard in range(request.containers)]
    job = request.rebuilt()
    job.merge(shards, result)
    return result, hashes(result, job.RESULTS)
