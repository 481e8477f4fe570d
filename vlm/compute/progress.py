"""Shows a job's events to the user: a progress bar on a terminal, a few lines elsewhere."""

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable

from tqdm import tqdm

from vlm.config.events import Log, Progress, Scalars

# Without a terminal, progress is printed in lines.
_LINES = 4
_LINE_INTERVAL = 20.0  # minimum seconds, except before the last line
_SILENCE = 30.0  # maximum seconds without a line


class ProgressBar:
    """`with ProgressBar() as emit: job.run(directory, emit)`, on stderr. A new total or unit starts a new bar.

    A bar that is full is closed, so that another job's can follow while this one's results are still in use.
    """

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._bar: tqdm | None = None
        self._lines: _Lines | None = None
        self._current: tuple[int, str] | None = None

    def __enter__(self) -> "ProgressBar":
        if not self._terminal:
            self._lines = _Lines(Progress(0, 1, "job"))  # until the job reports: loading a model can take minutes
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def __call__(self, event: Progress | Scalars | Log) -> None:
        if isinstance(event, Log):
            tqdm.write(event.text, file=sys.stderr)
        elif isinstance(event, Progress):
            self._show(event)

    def _show(self, event: Progress) -> None:
        full = event.done >= event.total
        shown = self._bar is not None or self._lines is not None
        if self._current == (event.total, event.unit) and full and not shown:
            return
        if self._current != (event.total, event.unit) or not shown:
            self._close()
            self._current = (event.total, event.unit)
            if self._terminal:
                self._bar = tqdm(
                    total=event.total, initial=event.done, unit=f" {event.unit}", dynamic_ncols=True, file=sys.stderr
                )
            else:
                self._lines = _Lines(event)
        if self._bar is not None:
            self._bar.update(event.done - self._bar.n)
        elif self._lines is not None:
            self._lines.show(event)
        if full:
            self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._lines is not None:
            self._lines.close()
        self._bar = self._lines = None


class _Lines:
    """Prints a line at each quarter of a long job, at the end of any job, and after _SILENCE seconds without a line."""

    def __init__(self, first: Progress) -> None:
        self._first = first.done
        self._last = first
        self._started = self._printed = time.monotonic()
        # -1: a job that an earlier run has already completed also gets a line.
        self._quarter = first.done * _LINES // max(first.total, 1) if first.done < first.total else -1
        self._closed = threading.Event()
        # In a thread, because a single batch of a large model on a CPU can take minutes.
        threading.Thread(target=self._break_silence, daemon=True).start()

    def show(self, event: Progress) -> None:
        self._last = event
        quarter = event.done * _LINES // max(event.total, 1)
        finished = event.done >= event.total
        if quarter != self._quarter and (finished or time.monotonic() - self._printed >= _LINE_INTERVAL):
            self._quarter = quarter
            self._print()

    def close(self) -> None:
        self._closed.set()

    def _break_silence(self) -> None:
        while not self._closed.wait(1.0):
            if self._last.done < self._last.total and time.monotonic() - self._printed >= _SILENCE:
                self._print()

    def _print(self) -> None:
        event, now = self._last, time.monotonic()
        self._printed = now
        elapsed = now - self._started
        rate = (event.done - self._first) / elapsed if elapsed else 0.0
        line = f"{event.done}/{event.total} {event.unit}"
        if rate or event.done < event.total:
            line += f" in {tqdm.format_interval(elapsed)}"
        if rate:
            line += f", {rate:.1f}/s" if rate >= 1 else f", {rate:.2f}/s"
        if event.done < event.total and rate:
            line += f", {tqdm.format_interval((event.total - event.done) / rate)} to go"
        print(line, file=sys.stderr, flush=True)


class Combined:
    """Combines the events of a job's shards.

    Adds up their progress and emits the first count that is not complete; shards that are already at a later count are
    not shown yet. A shard's count never goes back, so old events can be repeated, and a resumed shard is shown again
    when it gets further than before.

    A message that several shards send is emitted once, or as often as one of the shards sends it.
    """

    def __init__(self, emit: Callable[[Progress | Log], None]) -> None:
        self._emit = emit
        self._done: dict[tuple[int, str], dict[int, int]] = {}  # (total, unit), in the job's order -> shard -> done
        self._complete: set[tuple[int, str]] = set()
        self._sent: Counter[tuple[int, str]] = Counter()  # (shard, text) -> how often the shard has sent it
        self._emitted: Counter[str] = Counter()  # text -> how often it was emitted

    def __call__(self, shard: int, event: Progress | Log) -> None:
        if isinstance(event, Progress):
            self._count(shard, event)
        else:
            self._sent[shard, event.text] += 1
            if self._sent[shard, event.text] > self._emitted[event.text]:
                self._emitted[event.text] += 1
                self._emit(event)

    def _count(self, shard: int, event: Progress) -> None:
        counts = self._done.setdefault((event.total, event.unit), {})
        counts[shard] = max(counts.get(shard, 0), event.done)
        for (total, unit), done in self._done.items():
            if (total, unit) not in self._complete:
                self._emit(Progress(sum(done.values()), total, unit))
                if sum(done.values()) < total:
                    return
                self._complete.add((total, unit))
