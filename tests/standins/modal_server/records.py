"""What the control plane keeps of functions, calls, inputs and containers; `record` is each one's part of the log."""

import asyncio
import collections
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpclib.server
from modal_proto import api_pb2

from modal_server.journal import now

ENVIRONMENT = "main"  # Modal's name of the default one
IMAGE_BUILDER = "2025.06"


class Changed:
    """Something that others wait for a change of."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def tell(self) -> None:
        """Wakes all that wait now."""
        event, self._event = self._event, asyncio.Event()
        event.set()

    async def wait(self, seconds: float) -> None:
        """Until the next change, and no longer than that."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._event.wait(), seconds)


@dataclass(eq=False)
class Function:
    """A function of an app, or (`base` is set) a variant of one with other options."""

    id: str
    app: str
    name: str
    definition: api_pb2.Function | None = None  # None between FunctionPrecreate and FunctionCreate
    base: str | None = None
    parameters: bytes = b""
    queue: "collections.deque[Input]" = field(default_factory=collections.deque)
    queued: Changed = field(default_factory=Changed)
    containers: "set[Container]" = field(default_factory=set)


@dataclass(eq=False)
class Call:
    """A call of a function, with its inputs so far."""

    id: str
    function: Function
    record: dict
    inputs: "dict[str, Input]" = field(default_factory=dict)
    outputs: list[api_pb2.FunctionGetOutputsItem] = field(default_factory=list)
    progress: Changed = field(default_factory=Changed)
    cancelled: bool = False


class Input:
    """The arguments of a call, which containers take on until one of them has a result."""

    def __init__(self, id_: str, call: Call, item: api_pb2.FunctionPutInputsItem) -> None:
        self.id = id_
        self.call = call
        self.index = item.idx
        self.proto = item.input
        self.retries = 0  # after errors, which are the function's own
        self.crashes = 0
        self.done = False
        self.record: dict = {"input": id_, "status": "PENDING", "attempts": []}

    def begin(self, container: "Container") -> None:
        self.record["status"] = "RUNNING"
        attempt = {"container": container.id, "started": now(), "ended": None, "status": None}
        self.record["attempts"].append(attempt)

    def end(self, status: str, exception: str = "") -> None:
        self.record["attempts"][-1].update(ended=now(), status=status, exception=exception[:2000])


@dataclass(eq=False)
class Copy:
    """A container's own copy of a volume: nobody sees what it writes before a commit."""

    folder: Path
    base: dict[str, tuple] = field(default_factory=dict)  # its files as they were when both were last the same


class Container:
    """A subprocess that runs inputs of one function."""

    def __init__(self, id_: str, function: Function, folder: Path) -> None:
        self.id = id_
        self.function = function
        self.folder = folder
        self.control = folder / "control"  # the container sees it: arguments, and the socket of the control plane
        self.root = folder / "root"
        self.grpc: grpclib.server.Server | None = None
        self.process: asyncio.subprocess.Process | None = None
        self.running: dict[str, Input] = {}
        self.taken = 0  # inputs so far
        self.waiting = False  # for an input
        self.stopping = False
        self.preempted = False
        self.killed_for: str | None = None
        self.failed_start: api_pb2.GenericResult | None = None
        self.exited = asyncio.Event()
        self.copies: dict[str, Copy] = {}  # by the volume's id
        self.commits = 0
        self.puts = 0  # on queues
        self.record: dict = {
            "container": id_,
            "function": function.name,
            "started": now(),
            "ended": None,
            "exit_code": None,
            "end_reason": None,
        }

    @property
    def usable(self) -> bool:
        """Whether it can take on inputs."""
        return not (self.exited.is_set() or self.stopping or self.preempted or self.killed_for)
