"""The Hugging Face Hub: a revision's commit, and a commit's files, from the network or the cache."""

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
    """What a revision stands for, and, unless it is a commit itself, since when here (UTC, to the minute)."""

    sha: str
    since: str | None


def commit(repo: str, revision: str | None, kind: Kind, key: str) -> Commit:
    """The commit that a revision stood for when this machine first asked, so that all stages and runs use the same.

    It is kept in the user's cache directory until `resolve` asks again. `key` says in errors where the repository is
    named ("configs/models/3B.yaml: id"). Raises InputError.
    """
    if COMMIT.fullmatch(revision or ""):
        return Commit(revision, None)
    with _Memory() as memory:  # also the lock: of two stages at once the second uses the first one's
        name = _name(repo, revision, kind)
        if name not in memory.commits:
            memory.commits[name] = _ask(repo, revision, kind, key)
        return Commit(memory.commits[name]["commit"], memory.commits[name]["since"])


def resolve(repo: str, revision: str | None, kind: Kind, key: str) -> str:
    """The commit that a branch, tag or commit (None: the default branch) stands for now, or when last seen if offline.

    From now on `commit` gives it too. Raises InputError.
    """
    if COMMIT.fullmatch(revision or ""):
        return _ask(repo, revision, kind, key)["commit"]
    with _Memory() as memory:
        found = memory.commits[_name(repo, revision, kind)] = _ask(repo, revision, kind, key)
    return found["commit"]


def download(repo: str, commit: str, patterns: list[str], kind: Kind, key: str) -> Path:
    """The cached snapshot of a commit, complete as to the files that match `patterns`.

    A file that is in the cache is not asked for again, and an interrupted download goes on where it was. Raises
    InputError.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    return Path(
        _tried(
            lambda: snapshot_download(repo, repo_type=kind, revision=commit, allow_patterns=patterns), repo, commit, key
        )
    )


def files(repo: str, commit: str, kind: Kind, key: str) -> list[str]:
    """The paths of a commit's files, sorted. Asks the Hub. Raises InputError."""
    from huggingface_hub import HfApi

    def call() -> list[str]:
        return HfApi().list_repo_files(repo, repo_type=kind, revision=commit)

    return sorted(_tried(call, repo, commit, key, pauses=()))  # the library tries this again itself


def read_part(repo: str, commit: str, path: str, kind: Kind, key: str, read: Callable[[Any], T]) -> T:
    """What `read` makes of a file of the Hub, which travels only as far as it is read: in pieces of 64 KiB.

    `read` gets a file object that can seek, and may be called again after a broken connection. Raises InputError.
    """
    from huggingface_hub import HfFileSystem

    def call() -> T:
        # Without the instances and listings that fsspec keeps: after an error they would still say what they said.
        system = HfFileSystem(skip_instance_cache=True)
        with system.open(f"{kind}s/{repo}@{commit}/{path}", "rb", block_size=2**16) as file:
            return read(file)

    return _tried(call, repo, commit, key)


def _name(repo: str, revision: str | None, kind: Kind) -> str:
    return f"{kind} {repo} {revision or 'default branch'}"


def _ask(repo: str, revision: str | None, kind: Kind, key: str) -> dict[str, str]:
    from huggingface_hub import HfApi

    resolved = _tried(lambda: HfApi().resolve_revision(repo, repo_type=kind, revision=revision), repo, revision, key)
    # `resolved` as a str is the name that was asked for.
    return {"commit": resolved.resolved, "since": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())}


class _Memory:
    """The commits of revisions, in a file that one process at a time reads and changes."""

    def __init__(self) -> None:
        self._path = platformdirs.user_cache_path("vlm-pipeline") / "revisions.json"

    def __enter__(self) -> "_Memory":
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


def _tried(
    call: Callable[[], Any], repo: str, revision: str | None, key: str, pauses: Sequence[float] = _PAUSES
) -> Any:
    """`call()`, again after a pause if the connection broke or the Hub stumbled, with one-line errors."""
    from huggingface_hub import constants, errors

    what = f"{repo!r} at {revision}" if revision else f"{repo!r}"
    remaining = iter(pauses)
    while True:
        try:
            return call()
        except errors.HFValidationError:
            raise InputError(f"{key}: {repo!r} should be like organisation/name") from None
        except errors.GatedRepoError:
            raise InputError(
                f"{key}: {repo!r} is gated: accept its terms on its Hub page, then `hf auth login` or set HF_TOKEN"
            ) from None
        except errors.RevisionNotFoundError:
            raise InputError(f"{key}: {repo!r} has no revision {revision!r}; null stands for the newest") from None
        except errors.RepositoryNotFoundError:
            raise InputError(
                f"{key}: {repo!r} is not on the Hub, or is private: check the name; `hf auth login` or HF_TOKEN opens "
                "private ones"
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
