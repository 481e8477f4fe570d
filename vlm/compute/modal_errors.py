"""Modal's errors in words that say what to do about them."""

from collections.abc import Iterator
from contextlib import contextmanager

from modal import exception as refused

from vlm.config.errors import InputError

# The network, or Modal itself, is down: the job may well be running.
UNREACHABLE = (refused.ConnectionError, refused.ServiceError, refused.InternalError, ConnectionError)


@contextmanager
def explained() -> Iterator[None]:
    """Turns Modal's errors into an InputError: one line that says what to do."""
    try:
        yield
    except (refused.Error, ConnectionError) as error:
        raise InputError(failure(error)) from error


def failure(error: Exception) -> str:
    """What went wrong at Modal, and the remedy, in a line."""
    reason = line(error)
    remedies = {
        refused.AuthError: "there is no valid token here: `modal setup` makes one; `compute: local` does without Modal",
        (refused.ConnectionError, ConnectionError): f"cannot be reached ({reason}): check the network and try again",
        refused.ImageBuildError: (
            f"the image could not be built ({reason}): its log is on the app's page at modal.com; it is "
            "made of requirements.lock, which `make lock` writes"
        ),
        refused.FunctionTimeoutError: f"a container ran into its time limit ({reason}): a larger modal.timeout helps",
        refused.PermissionDeniedError: f"refused it ({reason}): the token's account may not do this",
        refused.ResourceExhaustedError: f"refused it ({reason}): a limit of the account is reached; see modal.com",
        refused.VersionError: f"this client is too old ({reason}): `uv sync` or `pip install -U modal`",
        refused.RemoteError: (
            f"a container ended and could not be started again ({reason}); if its memory ran out, a smaller batch_size "
            "or another modal.gpu helps; its log is on the app's page at modal.com"
        ),
    }
    for kind, remedy in remedies.items():
        if isinstance(error, kind):
            return f"modal: {remedy}"
    return f"modal: {type(error).__name__}: {reason}"


def line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
