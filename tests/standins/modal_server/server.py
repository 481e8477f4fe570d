"""The control plane: its parts, and how requests reach them."""

import argparse
import asyncio
import collections
import logging
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, suppress
from pathlib import Path

import aiohttp.web
import grpclib
import grpclib.const
import grpclib.server
from google.protobuf.message import Message
from modal_proto import api_grpc

from modal_server.apps import Apps
from modal_server.calls import Calls
from modal_server.containers import Containers
from modal_server.files import Files
from modal_server.functions import Functions
from modal_server.images import Images, Secrets
from modal_server.inputs import Inputs
from modal_server.journal import Journal
from modal_server.queues import Queues
from modal_server.records import Container
from modal_server.sandbox import Sandbox
from modal_server.service import Service
from modal_server.volumes import Volumes

TOKEN = {"MODAL_TOKEN_ID": "ak-fake", "MODAL_TOKEN_SECRET": "as-fake"}  # the only one that is valid

logging.getLogger("grpclib.server").setLevel(logging.CRITICAL)  # it logs a traceback when a client is killed


class Server:
    """`url` is the control plane's address, once started; `http_url` is where files go to and come from."""

    def __init__(self, options: argparse.Namespace, unshare: list[str]) -> None:
        self.options = options
        self.unshare = unshare
        self.state: Path = options.state.resolve()
        self.journal = Journal(options.log, options.command)
        self.url = self.http_url = ""
        self._numbers: collections.Counter[str] = collections.Counter()
        self._tasks: set[asyncio.Task] = set()
        self.files = Files(self)
        self.images = Images(self)
        self.secrets = Secrets(self)
        self.volumes = Volumes(self)
        self.queues = Queues(self)
        self.apps = Apps(self)
        self.functions = Functions(self)
        self.calls = Calls(self)
        self.inputs = Inputs(self)
        self.containers = Containers(self)
        self.sandbox = Sandbox(self)
        services = [service for service in vars(self).values() if isinstance(service, Service)]
        self._procedures = {
            name.removeprefix("rpc_"): getattr(service, name)
            for service in services
            for name in dir(service)
            if name.startswith("rpc_")
        }

    def new_id(self, prefix: str) -> str:
        self._numbers[prefix] += 1
        return f"{prefix}-{self._numbers[prefix]}"

    def spawn(self, coroutine: Coroutine) -> None:
        """Runs it beside everything else."""
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def start(self) -> None:
        app = aiohttp.web.Application(client_max_size=1 << 40)
        app.add_routes(
            [
                aiohttp.web.put("/blob/{name}", self.files.http_put),
                aiohttp.web.get("/volume/{id}", self.volumes.http_get),
            ]
        )
        self._http = aiohttp.web.AppRunner(app, access_log=None)
        await self._http.setup()
        await aiohttp.web.TCPSite(self._http, "127.0.0.1", 0).start()
        self.http_url = f"http://127.0.0.1:{self._http.addresses[0][1]}"
        self._grpc = grpclib.server.Server([self.protocol(None)])
        await self._grpc.start("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._grpc._server.sockets[0].getsockname()[1]}"

    async def shutdown(self) -> None:
        """Ends what still runs."""
        for app in self.apps.functions:
            with suppress(Exception):
                await self.apps.stop(app, "HARNESS_EXIT")
        self._grpc.close()
        await self._http.cleanup()

    def protocol(self, container: Container | None) -> "_Protocol":
        """Modal's protocol, as spoken to a container or (None) to clients."""
        # The generated base class is abstract; only its table of procedures is of use here.
        base = type("Base", (api_grpc.ModalClientBase,), {})
        base.__abstractmethods__ = frozenset()
        return _Protocol(
            {
                path: handler._replace(func=self._handler(path.rsplit("/", 1)[1], handler, container))
                for path, handler in base().__mapping__().items()
            }
        )

    def _handler(self, name: str, handler: grpclib.const.Handler, container: Container | None) -> Callable:
        async def handle(stream: grpclib.server.Stream) -> None:
            if container is None:
                self._check_token(stream)
            procedure = self._procedures.get(name)
            if procedure is None:
                if name not in self.journal.data["unimplemented"]:
                    self.journal.data["unimplemented"].append(name)
                Service.refuse("UNIMPLEMENTED", f"this stand-in for Modal has no {name}")
            request = await stream.recv_message()
            try:
                async for answer in _answers(procedure, request, container, handler):
                    await stream.send_message(answer)
            except (grpclib.GRPCError, grpclib.exceptions.StreamTerminatedError, ConnectionError):
                raise
            except Exception as error:
                self.journal.warn(f"the stand-in failed in {name}: {traceback.format_exc()}")
                raise grpclib.GRPCError(grpclib.Status.FAILED_PRECONDITION, f"stand-in: {name}: {error!r}") from error

        return handle

    @staticmethod
    def _check_token(stream: grpclib.server.Stream) -> None:
        sent = (stream.metadata.get("x-modal-token-id"), stream.metadata.get("x-modal-token-secret"))
        if sent != tuple(TOKEN.values()):
            Service.refuse("UNAUTHENTICATED", "Token validation failed. Please check your token credentials.")


class _Protocol:
    """What grpclib serves: handlers by path."""

    def __init__(self, handlers: dict[str, grpclib.const.Handler]) -> None:
        self._handlers = handlers

    def __mapping__(self) -> dict[str, grpclib.const.Handler]:
        return self._handlers


async def _answers(
    procedure: Callable, request: Message, container: Container | None, handler: grpclib.const.Handler
) -> AsyncIterator[Message]:
    if not handler.cardinality.server_streaming:
        answer = await procedure(request, container)
        yield handler.reply_type() if answer is None else answer
        return
    async with aclosing(procedure(request, container)) as answers:
        async for answer in answers:
            yield answer
