"""Draws a job's events for whoever watches: a bar on a terminal, a few lines in a log file."""

import sys
import time

from tqdm import tqdm

from vlm.config.events import Log, Progress, Scalars

_LINES = 4  # per bar, where there is no terminal
_BETWEEN_LINES = 20.0  # seconds at least


class ProgressBar:
    """`with ProgressBar() as emit: job.run(directory, emit)`. Another total or unit begins another bar; to stderr."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._bar: tqdm | None = None
        self._lines: _Lines | None = None
        self._current: tuple[int, str] | None = None

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def __call__(self, event: Progress | Scalars | Log) -> None:
        if isinstance(event, Log):
            tqdm.write(event.text, file=sys.stderr)
        elif isinstance(event, Progress):
            self._show(event)

    def _show(self, event: Progress) -> None:
        if self._current != (event.total, event.unit):
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

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar = self._lines = self._current = None


class _Lines:
    """A line at every quarter of a long job and at the end of every job."""

    def __init__(self, first: Progress) -> None:
        self._first = first.done
        self._started = self._printed = time.monotonic()
        # What begins at its end, for an earlier run has done it all, is said too.
        self._quarter = first.done * _LINES // max(first.total, 1) if first.done < first.total else -1

    def show(self, event: Progress) -> None:
        now = time.monotonic()
        quarter = event.done * _LINES // max(event.total, 1)
        finished = event.done >= event.total
        if quarter == self._quarter or not (finished or now - self._printed >= _BETWEEN_LINES):
            return
        self._quarter, self._printed = quarter, now
        elapsed = now - self._started
        rate = (event.done - self._first) / elapsed if elapsed else 0.0
        line = f"{event.done}/{event.total} {event.unit}"
        if rate:
            line += f" in {tqdm.format_interval(elapsed)}, {rate:.1f}/s"
        if not finished and rate:
            line += f", {tqdm.format_interval((event.total - event.done) / rate)} to go"
        print(line, file=sys.stderr, flush=True)
