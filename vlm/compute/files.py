"""Files on their way between machines: written whole or not at all, copied, compared by hash."""

import hashlib
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

TEMPORARY = ".part"  # the suffix of a file that is being written
_LEFT_OUT = {"scratch"}  # folders of a job that need not survive an attempt, because they can be made again


def write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + TEMPORARY)
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def hashes(directory: Path, names: Sequence[str]) -> dict[str, str]:
    """The sha256 of the named files, and of the files in the named folders, as far as they exist."""
    hashes = {}
    for path in (directory / name for name in names):
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file():
                hashes[file.relative_to(directory).as_posix()] = sha256(file)
    return hashes


class Mirror:
    """Keeps a copy of a local folder on the volume: whole files, changed ones only."""

    def __init__(self, directory: Path, kept: Path) -> None:
        self._directory = directory
        self._kept = kept
        self._known: dict[str, tuple[int, int]] = {}

    def restore(self) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)
        self._directory.mkdir(parents=True)
        for path in self._kept.rglob("*"):
            if path.is_file() and not path.name.endswith(TEMPORARY):
                target = self._directory / path.relative_to(self._kept)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, target)
        self._known = self._states()

    def save(self) -> None:
        states = self._states()
        for name, state in states.items():
            if self._known.get(name) != state:
                target = self._kept / name
                target.parent.mkdir(parents=True, exist_ok=True)
                temporary = target.with_name(target.name + TEMPORARY)
                with suppress(FileNotFoundError):  # of several processes, another may have just removed it
                    shutil.copy2(self._directory / name, temporary)
                    temporary.replace(target)
        for name in self._known.keys() - states.keys():
            (self._kept / name).unlink(missing_ok=True)
        self._known = states

    def _states(self) -> dict[str, tuple[int, int]]:
        states = {}
        for parent, folders, files in os.walk(self._directory):
            folders[:] = [name for name in folders if name not in _LEFT_OUT]
            for name in files:
                path = Path(parent, name)
                with suppress(FileNotFoundError):  # a temporary file of the job's own
                    state = path.stat()
                    states[str(path.relative_to(self._directory))] = (state.st_size, state.st_mtime_ns)
        return states
