"""Containers' copies of volumes: made when a container starts, and brought together by commit() and reload()."""

import asyncio
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from modal_server.journal import Journal, now
from modal_server.records import Container, Copy

if TYPE_CHECKING:
    from modal_server.volumes import Volume


PARTIAL = ".fake-modal"  # the ending of a file that is being copied


class Copies:
    """What a container does with its copy of a volume. What may take long runs in a thread, one at a time."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._lock = threading.RLock()

    def make(self, container: Container, volume: "Volume") -> Path:
        """The folder of a new copy."""
        folder = container.folder / f"volume-{volume.id}"
        with self._lock:
            subprocess.run(["cp", "-a", "--reflink=auto", volume.folder, folder], check=True)
        container.copies[volume.id] = Copy(folder, _files(folder))
        return folder

    def changes(self, container: Container, volume: "Volume") -> list[str]:
        """The files that the container has written, changed or removed since its copy and the volume were the same."""
        copy = container.copies[volume.id]
        files = _files(copy.folder)
        return sorted(name for name in files.keys() | copy.base.keys() if files.get(name) != copy.base.get(name))

    async def commit(self, container: Container, volume: "Volume") -> None:
        await asyncio.to_thread(self._locked, self._commit, container, volume)

    def _commit(self, container: Container, volume: "Volume") -> None:
        copy = container.copies[volume.id]
        changed, files = self.changes(container, volume), _files(copy.folder)
        for name in changed:
            if name in files:
                copy_file(copy.folder / name, volume.folder / name)
            else:
                (volume.folder / name).unlink(missing_ok=True)
        _copy_folders(copy.folder, volume.folder)
        copy.base = files
        self._journal.data["commits"].append(
            {"time": now(), "container": container.id, "function": container.function.name, "changed": changed[:500]}
        )

    async def reload(self, container: Container, volume: "Volume") -> None:
        await asyncio.to_thread(self._locked, self._reload, container, volume)

    def _locked(self, work: Callable[[Container, "Volume"], None], container: Container, volume: "Volume") -> None:
        with self._lock:
            work(container, volume)

    def _reload(self, container: Container, volume: "Volume") -> None:
        copy = container.copies[volume.id]
        if self.changes(container, volume):
            self._commit(container, volume)
        source, target = _files(volume.folder), _files(copy.folder)
        for name, (size, modified, _) in source.items():
            if target.get(name, ())[:2] != (size, modified):
                with suppress(FileNotFoundError):  # a client has removed it since
                    copy_file(volume.folder / name, copy.folder / name)
        for name in target.keys() - source.keys():
            (copy.folder / name).unlink()
        _copy_folders(volume.folder, copy.folder)
        copy.base = _files(copy.folder)

    async def held(self, container: Container, volume: "Volume") -> list[str]:
        """What the container's processes hold in their copy, where Modal refuses a reload: files, maps, directories."""
        folder = container.copies[volume.id].folder
        return await asyncio.to_thread(_held, container.process.pid, folder)


def copy_file(source: Path, target: Path) -> None:
    """A copy of the file, or of the link, which appears at once."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}{PARTIAL}")
    shutil.copy2(source, temporary, follow_symlinks=False)
    temporary.replace(target)


def _copy_folders(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            (target / path.relative_to(source)).mkdir(parents=True, exist_ok=True)


def _files(root: Path) -> dict[str, tuple[int, int, int]]:
    """Size, time and number of all files and links, by name, but for those that are being copied or go meanwhile."""
    found = {}
    for path in root.rglob("*"):
        if path.name.endswith(PARTIAL) or (path.is_dir() and not path.is_symlink()):
            continue
        with suppress(FileNotFoundError):
            status = path.lstat()
            found[str(path.relative_to(root))] = (status.st_size, status.st_mtime_ns, status.st_ino)
    return found


def _held(session: int, folder: Path) -> list[str]:
    """The files and directories in `folder` that a process of the session has open or mapped, or works in."""
    there: dict[tuple[int, int], str] = {}
    for path in (folder, *folder.rglob("*")):
        with suppress(OSError):
            status = path.lstat()
            there[status.st_dev, status.st_ino] = str(path.relative_to(folder))
    held = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.getsid(int(process.name)) != session:
                continue
            for link in _links(process):
                with suppress(OSError):
                    status = link.stat()
                    if name := there.get((status.st_dev, status.st_ino)):
                        held.add(name)
    return sorted(held)


def _links(process: Path) -> list[Path]:
    """Of what a process, named by its folder of /proc, has open or mapped, and of its working directory."""
    found = [process / "cwd"]
    for name in ("fd", "map_files"):
        with suppress(OSError):
            found += (process / name).iterdir()
    return found
