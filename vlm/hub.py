"""The Hugging Face Hub: a revision's commit, and a commit's files, from the network or the cache."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from vlm.errors import InputError

_PAUSES = (1.0, 2.0, 4.0)  # seconds between attempts

Kind = Literal["model", "dataset"]


def resolve(repo: str, revision: str | None, kind: Kind, key: str) -> str:
    """The commit that a branch, tag or commit (None: the default branch) stands for now, or when last seen if offline.

    `key` says in errors where the repository is named ("configs/models/3B.yaml: id"). Raises InputError.
    """
    from huggingface_hub import HfApi

    resolved = _tried(lambda: HfApi().resolve_revision(repo, repo_type=kind, revision=revision), repo, revision, key)
    return resolved.resolved  # as a str it is the name that was asked for


def download(repo: str, commit: str, patterns: list[str], kind: Kind, key: str) -> Path:
    """The cached snapshot of a commit, complete as to the files that match `patterns`.

    A file that is in the cache is not asked for again. Raises InputError.
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


def _tried(call: Callable[[], Any], repo: str, revision: str | None, key: str) -> Any:
    """`call()`, again after a pause if the connection broke or the Hub stumbled, with one-line errors."""
    from huggingface_hub import constants, errors

    what = f"{repo!r} at {revision}" if revision else f"{repo!r}"
    pauses = iter(_PAUSES)
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
        except (errors.HTTPError, errors.LocalEntryNotFoundError, errors.RevisionResolutionError) as error:
            if constants.is_offline_mode():
                raise InputError(f"{key}: {what} is not in the cache; unset HF_HUB_OFFLINE to download it") from None
            pause = next(pauses, None)
            if pause is None:
                reason = str(error.__cause__ or error).splitlines()[0]
                raise InputError(
                    f"{key}: {what} is not in the cache and cannot be downloaded: {reason}; "
                    "check the network and try again"
                ) from error
            time.sleep(pause)
