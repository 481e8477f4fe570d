"""Errors that the user can fix are reported in one line with exit code 1; a traceback means a bug."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import platformdirs

# Messages of libraries that could not finish writing a file. torch's does not name the cause.
_DISK_FULL = ("No space left on device", "Disk quota exceeded", "PytorchStreamWriter failed", "os error 28")


class InputError(Exception):
    """An error that the user can fix. The message is one line: the file, key and value, and what is expected."""


@contextmanager
def reported() -> Iterator[None]:
    """Reports an InputError or a full disk in one line on stderr with exit code 1, and Ctrl-C with exit code 130."""
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted; what a job has finished is kept, and its next run resumes from there", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if not is_disk_full(error):
            raise
        place = (
            getattr(error, "filename", None) or f"unfinished work is in {platformdirs.user_cache_path('vlm-pipeline')}"
        )
        print(f"error: the disk is full ({place}): free some space; the next run resumes from there", file=sys.stderr)
        sys.exit(1)


def is_disk_full(error: BaseException) -> bool:
    """Whether the error, or its cause or context, was raised because a disk or quota is full."""
    chain = [error, *filter(None, (error.__cause__, error.__context__))]
    return any(
        (isinstance(item, OSError) and item.errno in (errno.ENOSPC, errno.EDQUOT))
        or any(text in str(item) for text in _DISK_FULL)
        for item in chain
    )
