"""Runs a job on this machine."""

import hashlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import filelock
import platformdirs
import psutil
from pydantic_core import to_json

import vlm
from vlm.compute import processes
from vlm.compute.progress import ProgressBar
from vlm.compute.tracking import tracker
from vlm.config.events import Event, Log, Scalars

if TYPE_CHECKING:
    from vlm.compute import Job

_FORGET_AFTER = 30 * 24 * 3600  # seconds since unfinished work was last touched


@contextmanager
def run(job: "Job", live: str | None, track_with: Sequence[str]) -> Iterator[Path]:
    """Runs `job` in its folder (see `reserved`), yields the folder. Scalars go to the trackers; DVCLive uses `live`."""
    with _started(job) as (directory, bar), ExitStack() as stack:
        scalars = stack.enter_context(tracker(track_with, live, directory.name)) if live else None

        def emit(event: Event) -> None:
            if not isinstance(event, Scalars):
                bar(event)
            elif scalars:
                scalars(event)

        here = gpus()
        if len(here) > 1 and job.DATA_PARALLEL:
            # Whatever the model: in a process that sees several GPUs, the Trainer would use torch's DataParallel, which
            # our loss does not work with.
            processes.run(job, directory, emit, len(here))
        elif len(here) > 1 and not job.model.runs_on_cpu:
            processes.answer(job, directory, emit, here)
        else:
            job.run(directory, emit)
        yield directory


@contextmanager
def run_on_cpu(job: "Job") -> Iterator[Path]:
    """Runs a job that uses no GPU, whatever this machine has, in its folder (see `reserved`), and yields the folder."""
    with _started(job) as (directory, bar):
        job.run(directory, bar)
        yield directory


@contextmanager
def _started(job: "Job") -> Iterator[tuple[Path, ProgressBar]]:
    """The job's folder and progress bar; says so if the folder has an earlier run's work. Ends with dvc."""
    end_with_dvc()
    with reserved(key(job)) as (directory, bar):
        if any(directory.iterdir()):
            bar(Log("resuming the unfinished work of an earlier run"))
        yield directory, bar


def end_with_dvc(interrupt: bool = True) -> None:
    """Ends this process when the `dvc` that started it has died, since nobody would take the results.

    `interrupt` ends it as Ctrl-C does; otherwise it ends at once, which leaves a job on Modal running. Finished work is
    kept. A stage that was started by hand is not affected.
    """
    dvc = _dvc()
    if dvc is None:
        return

    def watch() -> None:
        with suppress(psutil.NoSuchProcess):
            while dvc.is_running() and dvc.status() != psutil.STATUS_ZOMBIE:
                time.sleep(1)
        if not interrupt:
            os._exit(1)
        os.kill(os.getpid(), signal.SIGINT)

    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore SIGINT
    threading.Thread(target=watch, daemon=True).start()


def _dvc() -> psutil.Process | None:
    """The process that runs this stage; None if the stage was started by hand.

    DVC starts a shell, which may become the stage (bash, zsh) or wait for it (dash, Debian's sh): of this process's
    ancestors we take the first one that is outside the stage, which is to say, without the variable that DVC sets.
    """
    stage = os.environ.get("DVC_STAGE")
    if stage is None:
        return None
    for ancestor in psutil.Process().parents():
        try:
            if ancestor.environ().get("DVC_STAGE") != stage:
                return ancestor
        except psutil.AccessDenied:  # another user's process, such as the init process of a container
            return ancestor
        except psutil.NoSuchProcess:  # it died just now, and so this process has another parent
            continue
    return None


def gpus() -> list[str]:
    """The NVIDIA GPUs that the driver lists and CUDA_VISIBLE_DEVICES, if set, makes visible; named as in that variable.

    Does not use torch, which is slow to import.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
    count = sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
    if visible is None:
        return [str(number) for number in range(count)]
    return list(takewhile(lambda name: name and not name.startswith("-"), visible.split(",")))[:count]  # -1 ends it


@contextmanager
def reserved(name: str) -> Iterator[tuple[Path, ProgressBar]]:
    """Yields a folder for a job in the user's cache directory, and a progress bar for its events.

    The folder is outside the repository, so that the next run finds the work of a killed one wherever DVC has checked
    out the code (`dvc exp run --temp`, queued experiments). Two processes with the same job take turns. The folder is
    removed when the block ends without an error or leaves the folder empty.
    """
    jobs = platformdirs.user_cache_path("vlm-pipeline") / "jobs"
    jobs.mkdir(parents=True, exist_ok=True)
    _forget_old_work(jobs)
    directory = jobs / name
    with ExitStack() as stack:
        bar = stack.enter_context(ProgressBar())
        lock = filelock.FileLock(f"{directory}.lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            bar(Log("another process is doing the same work; waiting for it to finish"))
            lock.acquire()
        stack.callback(lock.release)
        directory.mkdir(exist_ok=True)
        try:
            yield directory, bar
        finally:
            if not any(directory.iterdir()):
                directory.rmdir()
        shutil.rmtree(directory)


def key(job: "Job") -> str:
    """A name for the job that depends on its values, input files and model, and on the code that determines its result.

    It does not depend on the code that measures, draws or transfers files, nor on the keys of the model's file that say
    where the model can run, so unfinished work is still found after changes to those.
    """
    digest = hashlib.sha256(to_json(job, exclude={"model": {"runs_on_cpu", "gpu"}}))
    digest.update(" ".join(version(library) for library in ("torch", "transformers", "peft", "trl")).encode())
    packages = [Path(vlm.__file__).parent / package for package in job.PACKAGES]
    code = [file for package in packages for file in sorted(package.rglob("*.py"))]
    inputs = [*job.inputs, *([job.model.folder] if job.model.folder else [])]
    data = [file for path in map(Path, inputs) for file in ([path] if path.is_file() else sorted(path.rglob("*")))]
    for file in [*code, *data]:
        if file.is_file():
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
    return f"{type(job).__name__.lower()}-{digest.hexdigest()[:32]}"


def _forget_old_work(jobs: Path) -> None:
    for path in jobs.iterdir():
        with suppress(FileNotFoundError):  # another process has removed it
            if time.time() - path.stat().st_mtime > _FORGET_AFTER:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
