"""Writes, copies and hashes the files that move between machines."""

import hashlib
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

TEMPORARY = ".part"  # the suffix of a file that is being written
_LEFT_OUT = {"scratch"}  # a job's folders that are not saved, because they can be recreated


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file completely or not at all, by way of a temporary file next to it."""
    temporary = path.with_name(path.name + TEMPORARY)
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def hashes(directory: Path, names: Sequence[str]) -> dict[str, str]:
    """The sha256, by path, of the named files and of the files in the named folders; skips names that do not exist."""
    hashes = {}
    for path in (directory / name for name in names):
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file():
                hashes[file.relative_to(directory).as_posix()] = sha256(file)
    return hashes


class Mirror:
    """Keeps a copy of a local folder on the volume. `save` copies only changed files, each of them whole."""

    def __init__(self, directory: Path, copy: Path) -> None:
        self._directory = directory
        self._copy = copy
        self._known: dict[str, tuple[int, int]] = {}

    def restore(self) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)
        self._directory.mkdir(parents=True)
        for path in self._copy.rglob("*"):
            if path.is_file() and not path.name.endswith(TEMPORARY):
                target = self._directory / path.relative_to(self._copy)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, target)
        self._known = self._states()

    def save(self) -> None:
        states = self._states()
        for name, state in states.items():
            if self._known.get(name) != state:
                target = self._copy / name
                target.parent.mkdir(parents=True, exist_ok=True)
                temporary = target.with_name(target.name + TEMPORARY)
                with suppress(FileNotFoundError):  # another process of the job may have just removed it
                    shutil.copy2(self._directory / name, temporary)
                    temporary.replace(target)
        for name in self._known.keys() - states.keys():
            (self._copy / name).unlink(missing_ok=True)
        self._known = states

    def _states(self) -> dict[str, tuple[int, int]]:
        states = {}
        for parent, folders, files in os.walk(self._directory):
            folders[:] = [name for name in folders if name not in _LEFT_OUT]
            for name in files:
                path = Path(parent, name)
                with suppress(FileNotFoundError):  # a temporary file that the job has just removed
                    state = path.stat()
                    states[str(path.relative_to(self._directory))] = (state.st_size, state.st_mtime_ns)
        return states
