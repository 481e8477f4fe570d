"""Saves an attempt's unfinished work on the volume while the job goes on."""

import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from vlm.compute.attempts import Attempt
from vlm.compute.files import Mirror

_FIRST, _EVERY = 10.0, 30.0  # seconds until the first save, and at least between the next ones


class Saves:
    """Copies an attempt's folder to the volume, with the attempt's note, and commits the volume.

    The copy is made in the job's thread, between two of its steps, so that no file is copied half-written. (A job in
    several processes writes meanwhile; it recognises incomplete files when it resumes.) The commit, which can take
    seconds, runs in another thread. After a commit Modal may reload the volume, and refuses to if a file on it is open;
    therefore nothing is copied during a commit.
    """

    def __init__(
        self,
        mirror: Mirror,
        attempt: Attempt,
        commit: Callable[[], None],
        first: float = _FIRST,
        every: float = _EVERY,
    ) -> None:
        self._mirror = mirror
        self._attempt = attempt
        self._commit = commit
        self._every = every
        self._due = time.monotonic() + first
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._running: Future | None = None

    def save_if_due(self, done: int) -> None:
        """Saves without waiting for the commit; does nothing if it is too early or the last commit is still running.

        `done`: units of work finished, for the attempt's note. Raises the error of the last commit.
        """
        if time.monotonic() < self._due or (self._running and not self._running.done()):
            return
        if self._running:
            self._running.result()
        self._copy(done)
        self._running = self._thread.submit(self._commit)
        self._due = time.monotonic() + self._every

    def save(self, done: int) -> None:
        """Waits for a commit that is running, then saves and waits for that, too. Raises the error of its own commit.

        It makes up for an earlier commit that failed, whose error is therefore only printed.
        """
        error = self._running.exception() if self._running else None
        self._running = None
        if error:
            print(f"a commit failed, now trying once more: {error!r}", file=sys.stderr)
        self._copy(done)
        self._commit()

    def _copy(self, done: int) -> None:
        self._attempt.note(done)
        self._mirror.save()
