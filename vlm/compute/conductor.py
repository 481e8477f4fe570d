"""Sees a job on Modal through, in a container without a GPU: weights, work in containers with one, results."""

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
    from vlm.models import loading

    loading.require_files(request.rebuilt().model)
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
    return result, hashes(result, job.RESULTS)
