"""Becomes a container: in a new mount namespace, makes its root, and there runs the entry point of Modal's client.

A script with one argument, the JSON file that sandbox.py writes. It runs in isolated mode and imports nothing of ours.
"""

import ctypes
import json
import os
import sys
from pathlib import Path

_READ_ONLY, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 1, 32, 4096, 16384, 1 << 18  # <sys/mount.h>
_SYSTEM = ("/usr", "/etc", "/proc", "/dev", "/sys", "/bin", "/sbin", "/lib", "/lib64", "/lib32")
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    root = Path(spec["root"])
    _mount("none", "/", _RECURSIVE | _PRIVATE)
    for folder in map(Path, _SYSTEM):
        if folder.is_symlink():
            Path(f"{root}{folder}").symlink_to(folder.readlink())
        elif folder.is_dir():
            _bind(root, folder, folder)
    for folder in spec["interpreter"]:
        _bind(root, folder, folder)
    _bind(root, spec["control"], "/__modal")
    for source, target, read_only in spec["volumes"]:
        _bind(root, source, target, read_only)
    (root / "tmp").mkdir(exist_ok=True)
    (root / "tmp").chmod(0o1777)
    os.chroot(root)
    os.chdir("/root")
    os.execve(spec["python"], [spec["python"], "-u", "-m", "modal._container_entrypoint"], spec["environment"])


def _bind(root: Path, source: Path | str, target: Path | str, read_only: bool = False) -> None:
    """Makes the folder `source` visible as `target` under `root`."""
    inside = Path(f"{root}{target}")
    inside.mkdir(parents=True, exist_ok=True)
    _mount(source, inside, _BIND | _RECURSIVE)
    if read_only:
        _mount("none", inside, _BIND | _REMOUNT | _READ_ONLY)


def _mount(source: Path | str, target: Path | str, flags: int) -> None:
    if _libc.mount(os.fsencode(source), os.fsencode(target), None, flags, None):
        number = ctypes.get_errno()
        raise OSError(number, f"mount {source} -> {target}: {os.strerror(number)}")


if __name__ == "__main__":
    main()
