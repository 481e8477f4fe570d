"""A job's events: recorded in an append-only file, and sent to the watching process."""

import json
import queue
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from vlm.config.events import Event, Log, Progress, Scalars


class EventLog:
    """Appends a job's events to a file and sends them, from a separate thread, to the watching process.

    (attempt, number) identifies an event within its shard. Scalars that an earlier attempt wrote are left out.
    Progress is limited to one event per second, except for the last one of each total and unit: it is always written,
    even though a shard's count does not reach the total.
    """

    def __init__(self, path: Path, shard: int, attempt: int, send: Callable[[list[dict]], None]) -> None:
        earlier = read_events(path.read_bytes()) if path.exists() else []
        # Removes an incomplete last line that a killed attempt may have left.
        path.write_text("".join(json.dumps(entry) + "\n" for entry in earlier), encoding="utf-8")
        self._done: dict[tuple[int, str], int] = {}
        for entry in earlier:
            if entry["type"] == "Progress":
                self._count(event_of(entry))
        self._seen = {(e["step"], name) for e in earlier if e["type"] == "Scalars" for name in e["values"]}
        self._attempt = attempt
        self._shard = shard
        self._number = 0
        self._shown = 0.0
        self._delayed: Progress | None = None
        self._file = path.open("a", encoding="utf-8")
        self._send = send
        self._queue: queue.SimpleQueue = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._forward, daemon=True)
        self._thread.start()

    @property
    def done(self) -> int:
        """Finished work, over all units: it grows as long as the job gets anywhere."""
        return sum(self._done.values())

    def _count(self, event: Progress) -> None:
        unit = (event.total, event.unit)
        self._done[unit] = max(self._done.get(unit, 0), event.done)

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress):
            self._count(event)
            if self._delayed and (self._delayed.total, self._delayed.unit) != (event.total, event.unit):
                self._write(self._delayed)
            self._delayed = None
            now = time.monotonic()
            if 0 < event.done < event.total and now - self._shown < 1.0:
                self._delayed = event
                return
            self._shown = now
        elif isinstance(event, Scalars):
            event = Scalars(event.step, {n: v for n, v in event.values.items() if (event.step, n) not in self._seen})
            self._seen.update((event.step, name) for name in event.values)
            if not event.values:
                return
        self._write(event)

    def _write(self, event: Event) -> None:
        entry = {"shard": self._shard, "attempt": self._attempt, "number": self._number}
        entry |= {"type": type(event).__name__, **asdict(event)}
        self._number += 1
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()
        self._queue.put(entry)

    def close(self) -> None:
        if self._delayed:
            self._write(self._delayed)
        self._file.close()
        self._queue.put(None)
        self._thread.join(timeout=10)

    def _forward(self) -> None:
        ended = False
        while not ended:
            entries = [self._queue.get()]
            with suppress(queue.Empty):
                while len(entries) < 100:
                    entries.append(self._queue.get_nowait())
            ended = entries[-1] is None
            try:
                self._send([entry for entry in entries if entry is not None])
            except Exception as error:  # watching is optional; the file has all events
                print(f"events could not be sent: {error!r}", file=sys.stderr)


def read_events(content: bytes) -> list[dict]:
    """Parses the content of an event file, ignoring an incomplete last line, which a crash can leave."""
    complete, _, _ = content.rpartition(b"\n")
    return [json.loads(line) for line in complete.splitlines()]


def event_of(entry: dict) -> Event:
    kind = {"Progress": Progress, "Scalars": Scalars, "Log": Log}[entry["type"]]
    return kind(**{name: entry[name] for name in kind.__dataclass_fields__})
