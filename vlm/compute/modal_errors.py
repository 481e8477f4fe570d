"""Turns Modal's errors into messages that say what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

from modal import exception

from vlm.config.errors import InputError

# The network or Modal is down; the job may still be running.
UNREACHABLE = (exception.ConnectionError, exception.ServiceError, exception.InternalError, ConnectionError)


@contextmanager
def explained() -> Iterator[None]:
    """Raises InputError, with a message of one line, for Modal's errors in the block."""
    try:
        yield
    except (exception.Error, ConnectionError) as error:
        raise InputError(failure(error)) from error


def failure(error: Exception) -> str:
    """One line that says what went wrong on Modal and how to fix it."""
    reason = line(error)
    remedies = {
        exception.AuthError: (
            "no valid token on this machine: `modal setup` creates one; `compute: local` runs without Modal"
        ),
        (exception.ConnectionError, ConnectionError): f"cannot be reached ({reason}): check the network and try again",
        exception.ImageBuildError: (
            f"the image could not be built ({reason}): its log is on the app's page at modal.com; it is "
            "built from requirements.lock, which `make lock` writes"
        ),
        exception.FunctionTimeoutError: f"a container reached its time limit ({reason}): increase modal.timeout",
        exception.PermissionDeniedError: f"permission denied ({reason}): check the token's account",
        exception.ResourceExhaustedError: f"an account limit was reached ({reason}): see modal.com",
        exception.VersionError: f"the client is too old ({reason}): run `uv sync` or `pip install -U modal`",
        exception.RemoteError: (
            f"a container stopped and could not be restarted ({reason}); if it ran out of memory, try a smaller "
            "batch_size or another modal.gpu; its log is on the app's page at modal.com"
        ),
    }
    for kind, remedy in remedies.items():
        if isinstance(error, kind):
            return f"modal: {remedy}"
    return f"modal: {type(error).__name__}: {reason}"


def line(error: Exception) -> str:
    """The error's message in one line of at most 300 characters, or its class name if it has no message."""
    return " ".join(str(error).split())[:300] or type(error).__name__
