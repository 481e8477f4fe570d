"""Calls of functions, as a client sees them; inputs.py has the containers' side."""

import time
from typing import TYPE_CHECKING

from modal_proto import api_pb2

from modal_server.journal import now
from modal_server.records import Call, Function, Input
from modal_server.service import Answer, Asker, Service

if TYPE_CHECKING:
    from modal_server.server import Server

_Result = api_pb2.GenericResult


class Calls(Service):
    """Every call, by id."""

    def __init__(self, server: "Server") -> None:
        super().__init__(server)
        self._calls: dict[str, Call] = {}

    def __getitem__(self, id_: str) -> Call:
        if id_ not in self._calls:
            self.refuse("NOT_FOUND", f"Function call {id_} not found")
        return self._calls[id_]

    async def rpc_FunctionMap(self, request: api_pb2.FunctionMapRequest, container: Asker) -> Answer:
        """Begins a call."""
        if request.function_call_type != api_pb2.FUNCTION_CALL_TYPE_UNARY:
            self.refuse("UNIMPLEMENTED", "this stand-in for Modal has no maps")
        function = self.server.functions[request.function_id]
        call = self._begin(function)
        items = [self._add(call, item) for item in request.pipelined_inputs]
        return api_pb2.FunctionMapResponse(
            function_call_id=call.id,
            function_call_jwt=call.id,
            pipelined_inputs=items,
            retry_policy=function.definition.retry_policy,
            max_inputs_outstanding=1000,
        )

    async def rpc_FunctionGetOutputs(self, request: api_pb2.FunctionGetOutputsRequest, container: Asker) -> Answer:
        call = self[request.function_call_id]
        end = time.monotonic() + request.timeout
        while True:
            outputs = [output for output in call.outputs if request.start_idx <= output.idx <= request.end_idx]
            if outputs or time.monotonic() >= end:
                break
            await call.progress.wait(end - time.monotonic())
        return api_pb2.FunctionGetOutputsResponse(
            outputs=outputs,
            last_entry_id=f"{len(outputs)}-0",
            num_unfinished_inputs=sum(not one.done for one in call.inputs.values()),
            idxs=[output.idx for output in outputs],
        )

    async def rpc_FunctionCallCancel(self, request: api_pb2.FunctionCallCancelRequest, container: Asker) -> None:
        call, function = self[request.function_call_id], self[request.function_call_id].function
        if not request.terminate_containers:
            self.refuse("UNIMPLEMENTED", "this stand-in for Modal cancels with terminate_containers=True only")
        call.cancelled = True
        self.journal.event("cancel", call=call.id, function=function.name)
        terminated = _Result(status=_Result.GENERIC_STATUS_TERMINATED, exception="Input was cancelled by user")
        for one in [one for one in function.queue if one.call is call]:
            function.queue.remove(one)
            self.finish(one, terminated)
        for taken in list(function.containers):
            inputs = [one for one in taken.running.values() if one.call is call]
            for one in inputs:
                del taken.running[one.id]
                self.finish(one, terminated)
            if inputs:
                self.server.spawn(self.server.containers.terminate(taken, "cancelled"))

    def enqueue(self, one: Input, front: bool = False) -> None:
        """Lets a container take it on."""
        function = one.call.function
        (function.queue.appendleft if front else function.queue.append)(one)
        function.queued.tell()
        self.server.containers.scale(function)

    def retry_or_finish(self, one: Input, result: api_pb2.GenericResult, data_format: int) -> None:
        """After an error of the function's own."""
        policy = one.call.function.definition.retry_policy
        if one.retries < policy.retries and not one.call.cancelled:
            one.retries += 1
            self.journal.event("retry", function=one.call.function.name, input=one.id, attempt=one.retries)
            self.enqueue(one)  # at once, whatever delay the policy wants
        else:
            self.finish(one, result, data_format)

    def finish(self, one: Input, result: api_pb2.GenericResult, data_format: int = api_pb2.DATA_FORMAT_PICKLE) -> None:
        """Gives the call its output."""
        if one.done:
            return
        one.done = True
        status = _Result.GenericStatus.Name(result.status).removeprefix("GENERIC_STATUS_")
        one.record.update(status=status, exception=result.exception[:2000])
        call = one.call
        call.outputs.append(
            api_pb2.FunctionGetOutputsItem(result=result, idx=one.index, input_id=one.id, data_format=data_format)
        )
        call.record["ended"] = now()
        call.progress.tell()
        self.journal.write()

    def _begin(self, function: Function) -> Call:
        id_ = self.server.new_id("fc")
        record = {"call": id_, "function": function.name, "started": now(), "ended": None, "inputs": []}
        call = self._calls[id_] = Call(id_, function, record)
        self.journal.data["calls"].append(record)
        return call

    def _add(self, call: Call, item: api_pb2.FunctionPutInputsItem) -> api_pb2.FunctionPutInputsResponseItem:
        one = Input(self.server.new_id("in"), call, item)
        call.inputs[one.id] = one
        call.record["inputs"].append(one.record)
        self.enqueue(one)
        return api_pb2.FunctionPutInputsResponseItem(idx=item.idx, input_id=one.id, input_jwt=one.id)
