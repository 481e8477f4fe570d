"""Queues: named, and with one partition."""

import collections
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modal_proto import api_pb2

from modal_server.records import Changed
from modal_server.service import Answer, Asker, Service

if TYPE_CHECKING:
    from modal_server.server import Server


@dataclass
class _Queue:
    values: collections.deque[bytes] = field(default_factory=collections.deque)
    filled: Changed = field(default_factory=Changed)


class Queues(Service):
    """Every queue, by id; `_ids` has that of a name."""

    def __init__(self, server: "Server") -> None:
        super().__init__(server)
        self._queues: dict[str, _Queue] = {}
        self._ids: dict[str, str] = {}

    async def rpc_QueueGetOrCreate(self, request: api_pb2.QueueGetOrCreateRequest, container: Asker) -> Answer:
        name = request.deployment_name
        if name not in self._ids:
            if request.object_creation_type == api_pb2.OBJECT_CREATION_TYPE_UNSPECIFIED:
                self.refuse("NOT_FOUND", f"Queue '{name}' not found")
            self._ids[name] = self.server.new_id("qu")
            self._queues[self._ids[name]] = _Queue()
        return api_pb2.QueueGetOrCreateResponse(queue_id=self._ids[name], metadata=api_pb2.QueueMetadata(name=name))

    async def rpc_QueuePut(self, request: api_pb2.QueuePutRequest, container: Asker) -> None:
        queue = self._queue(request)
        queue.values.extend(request.values)
        queue.filled.tell()
        if container is not None:
            container.puts += 1
            self.server.inputs.counted(container, "put", container.puts)

    async def rpc_QueueGet(self, request: api_pb2.QueueGetRequest, container: Asker) -> Answer:
        queue = self._queue(request)
        end = time.monotonic() + request.timeout
        while not queue.values and time.monotonic() < end:
            await queue.filled.wait(end - time.monotonic())
        count = min(max(1, request.n_values), len(queue.values))
        return api_pb2.QueueGetResponse(values=[queue.values.popleft() for _ in range(count)])

    async def rpc_QueueDelete(self, request: api_pb2.QueueDeleteRequest, container: Asker) -> None:
        self._queues.pop(request.queue_id, None)
        self._ids = {name: id_ for name, id_ in self._ids.items() if id_ != request.queue_id}

    def _queue(self, request) -> _Queue:
        if request.queue_id not in self._queues:
            self.refuse("NOT_FOUND", f"Queue {request.queue_id} not found")
        return self._queues[request.queue_id]
