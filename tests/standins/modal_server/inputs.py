"""Inputs, as containers take them on, end them and lose them; also the preemptions that a test asks for."""

import asyncio
import time
from dataclasses import dataclass

from modal_proto import api_pb2

from modal_server.records import Container, Input
from modal_server.service import Answer, Service

_Result = api_pb2.GenericResult
_POLL = 10.0  # seconds that a container's question for an input stays open
_CRASHES = 2  # so often an input is given to another container


@dataclass
class Preemption:
    """Of the first container of a function that gets there: `value` seconds into an input, or at that many commits or
    puts on a queue."""

    function: str
    kind: str  # "after", "commit" or "put"
    value: float
    done: bool = False

    @classmethod
    def parse(cls, text: str) -> "Preemption":
        """From FUNCTION@10s, FUNCTION@commit:2 or FUNCTION@put:2."""
        function, _, when = text.partition("@")
        kind, _, value = when.partition(":")
        if kind in ("commit", "put"):
            return cls(function, kind, int(value))
        return cls(function, "after", float(when.removesuffix("s")))


class Inputs(Service):
    """The containers' side of calls."""

    async def rpc_FunctionGetInputs(self, request: api_pb2.FunctionGetInputsRequest, container: Container) -> Answer:
        function = container.function
        end = time.monotonic() + _POLL
        container.waiting = True
        try:
            while time.monotonic() < end:
                if container.stopping:
                    stop = api_pb2.FunctionGetInputsItem(kill_switch=True)
                    return api_pb2.FunctionGetInputsResponse(inputs=[stop])
                if function.queue and container.usable:
                    return api_pb2.FunctionGetInputsResponse(inputs=[self._begin(container, function.queue.popleft())])
                await function.queued.wait(end - time.monotonic())
            return api_pb2.FunctionGetInputsResponse()
        finally:
            container.waiting = False

    def _begin(self, container: Container, one: Input) -> api_pb2.FunctionGetInputsItem:
        container.running[one.id] = one
        container.taken += 1
        one.begin(container)
        for preemption in self._due(container, "after"):
            preemption.done = True
            asyncio.get_running_loop().call_later(preemption.value, self._preempt, container)
        return api_pb2.FunctionGetInputsItem(
            input_id=one.id,
            input=one.proto,
            function_call_id=one.call.id,
            retry_count=one.retries,
            function_call_invocation_type=api_pb2.FUNCTION_CALL_INVOCATION_TYPE_SYNC,
            function_map_idx=one.index,
        )

    async def rpc_FunctionPutOutputs(self, request: api_pb2.FunctionPutOutputsRequest, container: Container) -> None:
        for item in request.outputs:
            one = container.running.get(item.input_id)
            if one is None:
                continue
            interrupted = container.preempted or container.killed_for
            if item.result.status == _Result.GENERIC_STATUS_TERMINATED and interrupted:
                continue  # decided when the container has ended
            del container.running[one.id]
            status = _Result.GenericStatus.Name(item.result.status).removeprefix("GENERIC_STATUS_")
            one.end(status, item.result.exception)
            self.server.volumes.check_committed(container, one)
            if item.result.status == _Result.GENERIC_STATUS_SUCCESS:
                self.server.calls.finish(one, item.result, item.data_format)
            else:
                self.server.calls.retry_or_finish(one, item.result, item.data_format)
        self.server.containers.scale(container.function)

    def counted(self, container: Container, kind: str, count: int) -> None:
        """Preempts a container that has committed, or put something on a queue, often enough."""
        for preemption in self._due(container, kind):
            if count >= preemption.value:
                preemption.done = True
                self._preempt(container)

    async def hold(self, container: Container) -> None:
        """Waits, at the commit at which a test wants it, until the container is told to stop: it cannot end before."""
        held = self.server.options.hold
        if held and not held.done and held.function == container.function.name and container.commits >= held.value:
            held.done = True
            while not container.stopping:
                await container.function.queued.wait(_POLL)

    def _due(self, container: Container, kind: str) -> list[Preemption]:
        return [
            one
            for one in self.server.options.preempt
            if not one.done and one.kind == kind and one.function == container.function.name
        ]

    def _preempt(self, container: Container) -> None:
        if not container.exited.is_set():
            container.preempted = True
            self.journal.event("preempt", container=container.id, function=container.function.name)
            self.server.spawn(self.server.containers.preempt(container))

    def ended(self, container: Container) -> None:
        """Decides on what a container leaves behind."""
        function, left = container.function, list(container.running.values())
        container.running.clear()
        code = container.record["exit_code"]
        reason = container.killed_for or ("preempted" if container.preempted else "exited")
        if self.server.apps.stopped(function.app):
            container.record["end_reason"] = reason
            return
        if container.failed_start is not None:
            reason = f"failed to start: {container.failed_start.exception[:500]}"
            self._give_up([*left, *function.queue], container.failed_start)
        elif container.preempted:
            for one in left:
                one.end("PREEMPTED")
                self.server.calls.enqueue(one, front=True)
        elif left and not container.killed_for:
            reason = f"crashed with exit code {code}"
            for one in left:
                self._crashed(container, one, reason)
        elif not container.taken and code and not container.killed_for:
            reason = f"exited with {code} before the first input"
            output = (container.folder / "stderr.log").read_text(errors="replace")[-2000:]
            self._give_up([*function.queue], _failure(f"Container {reason}: {output}"))
        container.record["end_reason"] = reason
        if function.queue:
            self.server.containers.scale(function)

    def _crashed(self, container: Container, one: Input, reason: str) -> None:
        one.end("CRASHED", reason)
        one.crashes += 1
        self.journal.event("crash", container=container.id, function=container.function.name)
        if one.crashes > _CRASHES:
            self.server.calls.finish(one, _failure(f"Container {container.id} {reason}"))
        else:
            self.server.calls.enqueue(one, front=True)

    def _give_up(self, inputs: list[Input], result: api_pb2.GenericResult) -> None:
        for one in inputs:
            one.call.function.queue.clear()
            self.server.calls.finish(one, result)


def _failure(message: str) -> api_pb2.GenericResult:
    return _Result(status=_Result.GENERIC_STATUS_FAILURE, exception=message)
