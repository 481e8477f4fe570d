"""Following a job on Modal: its events from the queue as they come, and from the volume if they were missed."""

import queue
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress

import modal
from modal import exception as refused

from vlm.compute.event_log import event_of, read_events
from vlm.compute.modal_app import events_of, volume
from vlm.compute.modal_errors import UNREACHABLE
from vlm.compute.request import Request
from vlm.config.events import Event, Log, Progress, Scalars

_PATIENCE = 60.0  # seconds without a network before a watching process gives up

Tracked = Callable[[], AbstractContextManager]  # makes a consumer of scalars, or None if nobody wants them


def watched(call: modal.FunctionCall, request: Request, shown: "Shown") -> dict:
    """The call's value, when it is there; events are shown as they come."""
    events = events_of(request.key)
    reached = time.monotonic()
    while True:
        try:
            entries = _waiting(events)
            for entry in entries:
                shown(entry)
            if not entries or time.monotonic() - reached > 1:
                value = call.get(timeout=0)
                for entry in _waiting(events):
                    shown(entry)
                return value
        except TimeoutError:
            reached = time.monotonic()
        except UNREACHABLE:
            if time.monotonic() - reached > _PATIENCE:
                raise
            time.sleep(1)


def _waiting(events: modal.Queue) -> list[dict]:
    with suppress(queue.Empty, refused.NotFoundError):
        return events.get_many(100, timeout=0.5) or []
    return []


def record(request: Request) -> list[dict]:
    """What the volume holds of the job's events: all of them, when the job has ended."""
    entries = []
    for shard in range(request.containers):
        with suppress(refused.NotFoundError, FileNotFoundError):
            entries += read_events(read_file(f"{request.folder()}/{shard}/events.jsonl"))
    return entries


def read_file(path: str) -> bytes:
    return b"".join(volume.read_file(path))


class Shown:
    """Shows a job's events as they come from its containers, none twice, and puts them right at the end."""

    def __init__(self, bar: Callable[[Event], None], tracked: Tracked) -> None:
        self._bar = bar
        self._tracked = tracked
        self._open = ExitStack()
        self._track = self._open.enter_context(tracked())
        self._known: set[tuple[int, int, int]] = set()
        self._done: dict[tuple[int, str], dict[int, int]] = {}  # by total and unit, in the job's order; by container
        self._over: set[tuple[int, str]] = set()
        self._points: list[tuple[int, str, float]] = []

    def __call__(self, entry: dict) -> None:
        number = (entry["shard"], entry["attempt"], entry["number"])
        if number in self._known:
            return
        self._known.add(number)
        event = event_of(entry)
        if isinstance(event, Progress):
            self._count(entry["shard"], event)
            self._advance()
        elif isinstance(event, Log):
            self._bar(event)
        elif self._track:
            self._draw(event)

    def settle(self, record: list[dict]) -> None:
        """Shows the progress that was missed; tracks the scalars anew if they did not come as the record has them."""
        for entry in record:
            if entry["type"] == "Progress":
                self._count(entry["shard"], event_of(entry))
        self._advance()
        events = [event_of(entry) for entry in record if entry["type"] == "Scalars"]
        recorded = [(event.step, name, value) for event in events for name, value in event.values.items()]
        if self._track and recorded != self._points:
            self.close()
            self._track = self._open.enter_context(self._tracked())  # DVCLive begins with an empty folder
            self._points = []
            for event in events:
                self._draw(event)

    def close(self) -> None:
        self._open.close()

    def _count(self, shard: int, event: Progress) -> None:
        self._done.setdefault((event.total, event.unit), {})[shard] = event.done

    def _advance(self) -> None:
        """Draws the first count that is not full. Containers are not in step: one that is ahead is not shown yet."""
        for (total, unit), done in self._done.items():
            if (total, unit) not in self._over:
                self._bar(Progress(sum(done.values()), total, unit))
                if sum(done.values()) < total:
                    return
                self._over.add((total, unit))

    def _draw(self, event: Scalars) -> None:
        self._points += [(event.step, name, value) for name, value in event.values.items()]
        self._track(event)
