"""Follows a job on Modal: its events come from the queue, and from the volume if they were missed there."""

import queue
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress

import modal
from modal import exception

from vlm.compute.event_log import event_of, read_events
from vlm.compute.modal_app import events_of, volume
from vlm.compute.modal_errors import UNREACHABLE
from vlm.compute.progress import Combined
from vlm.compute.request import Request
from vlm.config.events import Event, Scalars

_PATIENCE = 60.0  # seconds without a connection before a watching process gives up

Tracked = Callable[[], AbstractContextManager]  # opens a consumer of scalars; None if no tracker is used


def watched(call: modal.FunctionCall, request: Request, shown: "Shown") -> dict:
    """Waits for the call and returns its value; shows events as they arrive."""
    events = events_of(request.key)
    reached = time.monotonic()
    while True:
        try:
            entries = _next_entries(events)
            for entry in entries:
                shown(entry)
            if not entries or time.monotonic() - reached > 1:
                value = call.get(timeout=0)
                for entry in _next_entries(events):
                    shown(entry)
                return value
        except TimeoutError:
            reached = time.monotonic()
        except UNREACHABLE:
            if time.monotonic() - reached > _PATIENCE:
                raise
            time.sleep(1)


def _next_entries(events: modal.Queue) -> list[dict]:
    with suppress(queue.Empty, exception.NotFoundError):
        return events.get_many(100, timeout=0.5) or []
    return []


def record(request: Request) -> list[dict]:
    """The job's events that are on the volume so far: all of them once the job has ended."""
    entries = []
    for shard in range(request.containers):
        with suppress(exception.NotFoundError, FileNotFoundError):
            entries += read_events(read_file(f"{request.folder()}/{shard}/events.jsonl"))
    return entries


def read_file(path: str) -> bytes:
    return b"".join(volume.read_file(path))


class Shown:
    """Shows a job's events as they arrive from its containers, each once (see `Combined` for several containers).

    `settle` adds missed progress and scalars at the end.
    """

    def __init__(self, bar: Callable[[Event], None], tracked: Tracked) -> None:
        self._tracked = tracked
        self._stack = ExitStack()
        self._track = self._stack.enter_context(tracked())
        self._known: set[tuple[int, int, int]] = set()
        self._combined = Combined(bar)
        self._points: list[tuple[int, str, float]] = []

    def __call__(self, entry: dict) -> None:
        number = (entry["shard"], entry["attempt"], entry["number"])
        if number in self._known:
            return
        self._known.add(number)
        event = event_of(entry)
        if not isinstance(event, Scalars):
            self._combined(entry["shard"], event)
        elif self._track:
            self._log(event)

    def settle(self, record: list[dict]) -> None:
        """Shows missed progress; tracks all scalars again if they did not arrive exactly as in the record."""
        for entry in record:
            if entry["type"] == "Progress":
                self._combined(entry["shard"], event_of(entry))
        events = [event_of(entry) for entry in record if entry["type"] == "Scalars"]
        recorded = [(event.step, name, value) for event in events for name, value in event.values.items()]
        if self._track and recorded != self._points:
            self.close()
            self._track = self._stack.enter_context(self._tracked())  # DVCLive starts with an empty folder
            self._points = []
            for event in events:
                self._log(event)

    def close(self) -> None:
        self._stack.close()

    def _log(self, event: Scalars) -> None:
        self._points += [(event.step, name, value) for name, value in event.values.items()]
        self._track(event)
