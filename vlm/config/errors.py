"""What a user can put right ends with one line and exit code 1; a traceback means a bug."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class InputError(Exception):
    """Wrong input. The message is one line: which file, key and value, and what would be right."""


@contextmanager
def reported() -> Iterator[None]:
    """Turns an InputError into one line on stderr and exit code 1, Ctrl-C into a line and exit code 130."""
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted: what is finished is kept, and the next run goes on from there", file=sys.stderr)
        sys.exit(130)
