"""Failures that a test asks of the Hub's stand-in: error statuses, and file bodies that break off."""

import asyncio
import collections
import re
import socket
import struct
from dataclasses import dataclass

from aiohttp import web


@dataclass
class Fault:
    """Befalls the first `times` requests whose "METHOD /path" has a match of `pattern`.

    `kind` is a status ("503"), or "drop" (the body ends early, FIN) or "reset" (TCP reset) for a file's body.
    """

    kind: str
    times: int
    pattern: str

    @classmethod
    def parse(cls, text: str) -> "Fault":
        """From KIND:TIMES:REGEX."""
        kind, times, pattern = text.split(":", 2)
        if not kind.isdigit() and kind not in ("drop", "reset"):
            raise ValueError(kind)
        return cls(kind, int(times), pattern)


class Faults:
    """All faults of a run. With `after`, the body of every file breaks off once after that many bytes, too."""

    def __init__(self, faults: list[Fault], after: int | None) -> None:
        self._faults = faults
        self._after = after
        self._broken: collections.Counter[tuple] = collections.Counter()

    def status(self, request: web.Request) -> int | None:
        """The error to answer with, if any."""
        fault = self._next(request, bodies=False)
        return int(fault.kind) if fault else None

    def break_off(self, request: web.Request, file: tuple, length: int) -> tuple[int, str] | None:
        """After how many bytes of a body of `length`, and how, the connection is to end, if it is."""
        after = self._after or 0
        if after < length and (fault := self._next(request, bodies=True)):
            return after, fault.kind
        if self._after is not None and self._after < length and not self._broken[file]:
            self._broken[file] += 1
            return self._after, "drop"
        return None

    def _next(self, request: web.Request, bodies: bool) -> Fault | None:
        line = f"{request.method} {request.raw_path.split('?')[0]}"
        for fault in self._faults:
            if fault.times > 0 and bodies != fault.kind.isdigit() and re.search(fault.pattern, line):
                fault.times -= 1
                return fault
        return None


async def hang_up(request: web.Request, kind: str) -> None:
    """Ends the connection of a request in the middle of its answer."""
    transport = request.transport
    if transport is None:
        return
    if kind == "reset":
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await asyncio.sleep(0.2)  # let the client read what was sent: a reset discards the rest
        transport.abort()
    else:
        transport.close()
