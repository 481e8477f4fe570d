"""The repositories that the Hub's stand-in serves: folders on disk, each of which is one commit of its branch `main`.

The commit's sha is a hash of the repository's name and of its files' names and contents. So it is the same on every
machine, and an edit on disk makes a new commit, after which the old one is gone.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

KINDS = ("models", "datasets")
LFS_LIMIT = 10 * 1024 * 1024
# A part of the Hub's list: what test repositories can hold.
LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".model", ".npy", ".parquet", ".zip", ".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Blob:
    """A file of a commit."""

    size: int
    oid: str  # git's id: of the content, or of the LFS pointer to it
    sha256: str
    lfs: bool
    disk: Path

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    """A commit's sha, its files by path, and its date in seconds since 1970."""

    sha: str
    files: dict[str, Blob]
    date: float


def lfs_pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


class Store:
    """What is under `root`: models/ORG/NAME/<files> and datasets/ORG/NAME/<files>."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._hashes: dict[tuple, tuple[str, str]] = {}
        for kind in KINDS:  # hash everything now, so that no request waits for it
            for folder in self._root.glob(f"{kind}/*/*"):
                self._commit(kind, f"{folder.parent.name}/{folder.name}", folder)

    def resolve(self, kind: str, repo: str, revision: str) -> Commit:
        """The commit that `main` or a full sha names. KeyError: no such repository; LookupError: no such revision."""
        folder = self._root / kind / repo
        if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repo) or not folder.is_dir():
            raise KeyError(repo)
        commit = self._commit(kind, repo, folder)
        if revision not in ("main", commit.sha):
            raise LookupError(revision)
        return commit

    def _commit(self, kind: str, repo: str, folder: Path) -> Commit:
        files = {}
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = path.relative_to(folder).as_posix()
            size = path.stat().st_size
            sha1, sha256 = self._hashes_of(path)
            lfs = size > LFS_LIMIT or name.endswith(LFS_SUFFIXES)
            oid = _git_oid(lfs_pointer(sha256, size)) if lfs else sha1
            files[name] = Blob(size, oid, sha256, lfs, path)
        digest = hashlib.sha1(f"{kind}/{repo}\n".encode())
        for name, blob in sorted(files.items()):
            digest.update(f"{blob.oid} {name}\n".encode())
        date = max((blob.disk.stat().st_mtime for blob in files.values()), default=0.0)
        return Commit(digest.hexdigest(), files, date)

    def _hashes_of(self, path: Path) -> tuple[str, str]:
        """Git's sha1 and the sha256 of a file's content, from memory if the file has not changed since."""
        status = path.stat()
        key = (path, status.st_size, status.st_mtime_ns, status.st_ino)
        if key not in self._hashes:
            content = path.read_bytes()
            self._hashes[key] = _git_oid(content), hashlib.sha256(content).hexdigest()
        return self._hashes[key]


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
