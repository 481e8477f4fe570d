"""Containers: when they start, and how they end."""

import asyncio
import os
import shutil
import signal
import subprocess
import traceback
from contextlib import suppress

import grpclib.server
from google.protobuf.empty_pb2 import Empty
from modal_proto import api_pb2

from modal_server.journal import now
from modal_server.records import Container, Function
from modal_server.service import Service

_MAX = 2  # containers per function at a time
_PREEMPTION_GRACE, _GRACE = 30.0, 10.0  # seconds from SIGINT to SIGKILL
_HEARTBEAT = 10.0  # seconds that a container's heartbeat stays open


class Containers(Service):
    """Starts containers for inputs, and ends them."""

    def scale(self, function: Function) -> None:
        """Starts as many containers as the queue needs, up to the limit."""
        live = [one for one in function.containers if not one.exited.is_set()]
        free = [one for one in live if one.usable and not one.running]
        if function.definition.single_use_containers:
            free = [one for one in free if not one.taken]
        for _ in range(min(len(function.queue) - len(free), _MAX - len(live))):
            self._start(function)

    def _start(self, function: Function) -> None:
        id_ = self.server.new_id("ta")
        container = Container(id_, function, self.server.state / "containers" / id_)
        function.containers.add(container)
        self.journal.data["containers"].append(container.record)
        self.server.spawn(self._run(container))

    async def _run(self, container: Container) -> None:
        try:
            command = await asyncio.to_thread(self.server.sandbox.prepare, container)
            container.grpc = grpclib.server.Server([self.server.protocol(container)])
            await container.grpc.start(path=str(container.control / "socket"))
            with (
                (container.folder / "stdout.log").open("wb") as output,
                (container.folder / "stderr.log").open("wb") as errors,
            ):
                container.process = await asyncio.create_subprocess_exec(
                    *command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, start_new_session=True
                )
            container.record["exit_code"] = await container.process.wait()
        except Exception:
            self.journal.warn(f"cannot run container {container.id}: {traceback.format_exc()}")
        finally:
            container.exited.set()
            container.function.containers.discard(container)
            container.record["ended"] = now()
            if container.grpc:
                container.grpc.close()
            self.server.inputs.ended(container)
            for folder in (container.root, *(copy.folder for copy in container.copies.values())):
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def preempt(self, container: Container) -> None:
        """As Modal takes a machine away: with some time to save, or (mode kill) with none."""
        if self.server.options.preempt_mode == "kill":
            self._kill(container)
        else:
            await self.terminate(container, "preempted", _PREEMPTION_GRACE)

    async def terminate(self, container: Container, reason: str, grace: float = _GRACE) -> None:
        """SIGINT, upon which the entry point runs exit handlers and commits volumes; SIGKILL if that takes long."""
        container.killed_for = container.killed_for or reason
        self._tell_to_stop(container)
        while container.process is None and not container.exited.is_set():
            await asyncio.sleep(0.05)
        if container.process and container.process.returncode is None:
            with suppress(ProcessLookupError):
                container.process.send_signal(signal.SIGINT)
        if not await _ends(container, grace):
            self._kill(container)
            await _ends(container, _GRACE)

    async def retire(self, container: Container) -> None:
        """At the end of the app: an idle container gets no more inputs, a busy one is interrupted."""
        self._tell_to_stop(container)
        if container.running or not container.waiting or not await _ends(container, _GRACE):
            await self.terminate(container, "app stopped")

    def _tell_to_stop(self, container: Container) -> None:
        container.stopping = True
        container.function.queued.tell()

    def _kill(self, container: Container) -> None:
        if container.process and container.process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(container.process.pid, signal.SIGKILL)

    async def rpc_ContainerHello(self, request: Empty, container: Container) -> None:
        """A container is there, which is known already."""

    async def rpc_ContainerHeartbeat(self, request: api_pb2.ContainerHeartbeatRequest, container: Container) -> None:
        """Nothing to tell it: the answer comes late, as Modal's does, so that the next question does."""
        await asyncio.sleep(_HEARTBEAT)

    async def rpc_TaskResult(self, request: api_pb2.TaskResultRequest, container: Container) -> None:
        """A container that cannot start says why."""
        container.failed_start = request.result


async def _ends(container: Container, seconds: float) -> bool:
    """Whether it has ended, or does so in that time."""
    with suppress(TimeoutError):
        await asyncio.wait_for(container.exited.wait(), seconds)
    return container.exited.is_set()
