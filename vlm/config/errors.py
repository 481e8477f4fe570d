"""What a user can put right ends with one line and exit code 1; a traceback means a bug."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# What libraries raise when a file cannot be written to its end: torch's message names no cause.
_DISK_FULL = ("No space left on device", "Disk quota exceeded", "PytorchStreamWriter failed", "os error 28")


class InputError(Exception):
    """Wrong input. The message is one line: which file, key and value, and what would be right."""


@contextmanager
def reported() -> Iterator[None]:
    """Turns an InputError or a full disk into one line on stderr and exit code 1, Ctrl-C into one and exit code 130."""
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted: what is finished is kept, and the next run goes on from there", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if not is_disk_full(error):
            raise
        place = getattr(error, "filename", None) or "unfinished work is in ~/.cache/vlm-pipeline, or XDG_CACHE_HOME"
        print(f"error: the disk is full ({place}): make room, and the next run goes on from there", file=sys.stderr)
        sys.exit(1)


def is_disk_full(error: BaseException) -> bool:
    """Whether this, or an error that led to it, was raised because a disk or a quota is full."""
    chain = [error, *filter(None, (error.__cause__, error.__context__))]
    return any(
        (isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT))
        or any(text in str(one) for text in _DISK_FULL)
        for one in chain
    )
