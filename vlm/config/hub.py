"""Access to the Hugging Face Hub: resolves revisions to commits, and gets files from the network or the cache."""

import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import filelock
import platformdirs

from vlm.config.errors import InputError

_PAUSES = (1.0, 2.0, 4.0)  # seconds between attempts
COMMIT = re.compile(r"[0-9a-f]{40}")

T = TypeVar("T")
Kind = Literal["model", "dataset"]


@dataclass(frozen=True)
class Commit:
    """The commit of a revision, and when this machine resolved it (UTC, to the minute); None for a commit itself."""

    sha: str
    since: str | None


def commit(repo: str, revision: str | None, kind: Kind, key: str) -> Commit:
    """The commit that a revision pointed to when this machine first resolved it, so that all stages and runs agree.

    It is stored in the user's cache directory until `resolve` replaces it. `key` is the file and key that name the
    repository, for error messages ("configs/models/3B.yaml: id"). Raises InputError.
    """
    if COMMIT.fullmatch(revision or ""):
        return Commit(revision, None)
    with _Resolved() as known:  # also a lock: of two concurrent stages, the second uses the first one's commit
        name = _name(repo, revision, kind)
        if name not in known.commits:
            known.commits[name] = _query(repo, revision, kind, key)
        return Commit(known.commits[name]["commit"], known.commits[name]["since"])


def resolve(repo: str, revision: str | None, kind: Kind, key: str) -> str:
    """The commit that a branch, tag or commit (None: the default branch) points to now, or in the cache if offline.

    From then on, `commit` returns it too. Raises InputError.
    """
    if COMMIT.fullmatch(revision or ""):
        return _query(repo, revision, kind, key)["commit"]
    with _Resolved() as known:
        found = known.commits[_name(repo, revision, kind)] = _query(repo, revision, kind, key)
    return found["commit"]


def download(repo: str, commit: str, patterns: list[str], kind: Kind, key: str) -> Path:
    """Downloads the files of a commit that match `patterns`; returns the folder of the cached snapshot.

    Files in the cache are not requested again, and an interrupted download is resumed. Raises InputError.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    return Path(
        _with_retries(
            lambda: snapshot_download(repo, repo_type=kind, revision=commit, allow_patterns=patterns), repo, commit, key
        )
    )


def files(repo: str, commit: str, kind: Kind, key: str) -> list[str]:
    """The sorted paths of a commit's files. Needs the network. Raises InputError."""
    from huggingface_hub import HfApi

    def call() -> list[str]:
        return HfApi().list_repo_files(repo, repo_type=kind, revision=commit)

    return sorted(_with_retries(call, repo, commit, key, pauses=()))  # the library itself retries this


def read_part(repo: str, commit: str, path: str, kind: Kind, key: str, read: Callable[[Any], T]) -> T:
    """Returns `read(file)` for a file on the Hub; downloads only the parts that are read, in blocks of 64 KiB.

    `read` gets a seekable file object, and may be called again after a broken connection. Raises InputError.
    """
    from huggingface_hub import HfFileSystem

    def call() -> T:
        # Without fsspec's cached instances and listings, which would be stale after an error.
        system = HfFileSystem(skip_instance_cache=True)
        with system.open(f"{kind}s/{repo}@{commit}/{path}", "rb", block_size=2**16) as file:
            return read(file)

    return _with_retries(call, repo, commit, key)


def _name(repo: str, revision: str | None, kind: Kind) -> str:
    return f"{kind} {repo} {revision or 'default branch'}"


def _query(repo: str, revision: str | None, kind: Kind, key: str) -> dict[str, str]:
    from huggingface_hub import HfApi

    resolved = _with_retries(
        lambda: HfApi().resolve_revision(repo, repo_type=kind, revision=revision), repo, revision, key
    )
    # As a str, `resolved` is the requested revision; its attribute `resolved` is the commit.
    return {"commit": resolved.resolved, "since": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())}


class _Resolved:
    """The commits of revisions, in a file. A lock admits one process at a time."""

    def __init__(self) -> None:
        self._path = platformdirs.user_cache_path("vlm-pipeline") / "revisions.json"

    def __enter__(self) -> "_Resolved":
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = filelock.FileLock(f"{self._path}.lock")
        self._lock.acquire()
        try:
            self.commits: dict[str, dict[str, str]] = json.loads(self._path.read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            self.commits = {}
        self._before = dict(self.commits)
        return self

    def __exit__(self, *_: object) -> None:
        if self.commits != self._before:
            temporary = self._path.with_suffix(".tmp")
            temporary.write_text(json.dumps(self.commits, indent=2) + "\n", encoding="utf-8")
            temporary.replace(self._path)
        self._lock.release()


def _with_retries(
    call: Callable[[], Any], repo: str, revision: str | None, key: str, pauses: Sequence[float] = _PAUSES
) -> Any:
    """Returns `call()`, retrying after network and server errors. Raises InputError with the remedy."""
    from huggingface_hub import constants, errors

    what = f"{repo!r} at {revision}" if revision else f"{repo!r}"
    remaining = iter(pauses)
    while True:
        try:
            return call()
        except errors.HFValidationError:
            raise InputError(f"{key}: {repo!r} should have the form organisation/name") from None
        except errors.GatedRepoError:
            raise InputError(
                f"{key}: {repo!r} is gated: accept its terms on its Hub page, then `hf auth login` or set HF_TOKEN"
            ) from None
        except errors.RevisionNotFoundError:
            raise InputError(f"{key}: {repo!r} has no revision {revision!r}; null means the newest") from None
        except errors.RepositoryNotFoundError:
            raise InputError(
                f"{key}: {repo!r} is not on the Hub, or is private: check the name; `hf auth login` or HF_TOKEN "
                "gives access to private ones"
            ) from None
        except (
            errors.HTTPError,
            errors.LocalEntryNotFoundError,
            errors.RevisionResolutionError,
            errors.OfflineModeIsEnabled,
        ) as error:
            if constants.is_offline_mode():
                raise InputError(f"{key}: {what} is not in the cache; unset HF_HUB_OFFLINE to download it") from None
            pause = next(remaining, None)
            if pause is None:
                reason = str(error.__cause__ or error).splitlines()[0]
                raise InputError(
                    f"{key}: {what} is not in the cache and cannot be downloaded: {reason}; "
                    "check the network and try again"
                ) from error
            time.sleep(pause)
