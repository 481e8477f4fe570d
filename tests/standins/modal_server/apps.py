"""Apps: what a client opens, fills with functions and stops."""

import asyncio
import time
from typing import TYPE_CHECKING

from modal_proto import api_pb2

from modal_server.journal import now
from modal_server.records import ENVIRONMENT, IMAGE_BUILDER
from modal_server.service import Answer, Asker, Service

if TYPE_CHECKING:
    from modal_server.server import Server

_PAGE = "http://modal.invalid/apps"


class Apps(Service):
    """Every app, by id: its functions' ids by name."""

    def __init__(self, server: "Server") -> None:
        super().__init__(server)
        self.functions: dict[str, dict[str, str]] = {}

    def stopped(self, app: str) -> bool:
        return bool(self.journal.data["apps"][app]["stopped"])

    def layout(self, app: str) -> api_pb2.AppLayout:
        """All objects that a container of the app may refer to."""
        server = self.server
        objects = [
            api_pb2.Object(object_id=one.id, function_handle_metadata=server.functions.metadata(one))
            for one in server.functions.of(app)
        ]
        objects += [api_pb2.Object(object_id=one.id, volume_metadata=one.metadata()) for one in server.volumes.all()]
        metadata = api_pb2.MountHandleMetadata(content_checksum_sha256_hex="0" * 64)
        objects += [api_pb2.Object(object_id=id_, mount_handle_metadata=metadata) for id_ in server.files.mounts]
        objects += [api_pb2.Object(object_id=id_) for id_ in [*server.secrets.values, *server.images.protos]]
        return api_pb2.AppLayout(objects=objects, function_ids=self.functions[app])

    async def stop(self, app: str, reason: str) -> None:
        """Ends its containers."""
        record = self.journal.data["apps"][app]
        if record["stopped"]:
            return
        record.update(stopped=now(), stop_reason=reason)
        functions = self.server.functions.of(app)
        for function in functions:
            function.queue.clear()
        containers = [one for function in functions for one in function.containers]
        await asyncio.gather(*map(self.server.containers.retire, containers))
        self.journal.write()

    async def rpc_EnvironmentGetOrCreate(
        self, request: api_pb2.EnvironmentGetOrCreateRequest, container: Asker
    ) -> Answer:
        metadata = api_pb2.EnvironmentMetadata(
            name=request.deployment_name or ENVIRONMENT,
            settings=api_pb2.EnvironmentSettings(image_builder_version=IMAGE_BUILDER),
        )
        return api_pb2.EnvironmentGetOrCreateResponse(environment_id="en-1", metadata=metadata)

    async def rpc_AppCreate(self, request: api_pb2.AppCreateRequest, container: Asker) -> Answer:
        app = self.server.new_id("ap")
        self.functions[app] = {}
        self.journal.data["apps"][app] = {
            "description": request.description,
            "state": api_pb2.AppState.Name(request.app_state),
            "created": now(),
            "stopped": None,
            "stop_reason": None,
        }
        return api_pb2.AppCreateResponse(app_id=app, app_page_url=f"{_PAGE}/{app}", app_logs_url=_PAGE)

    async def rpc_AppPublish(self, request: api_pb2.AppPublishRequest, container: Asker) -> Answer:
        self.functions[request.app_id].update(request.function_ids)
        return api_pb2.AppPublishResponse(url=f"{_PAGE}/{request.app_id}", deployed_at=time.time())

    async def rpc_AppHeartbeat(self, request: api_pb2.AppHeartbeatRequest, container: Asker) -> None:
        if self.stopped(request.app_id):
            self.refuse("FAILED_PRECONDITION", "App is stopped")

    async def rpc_AppClientDisconnect(self, request: api_pb2.AppClientDisconnectRequest, container: Asker) -> None:
        record = self.journal.data["apps"][request.app_id]
        if record["state"] == "APP_STATE_DETACHED":
            record["client_disconnected"] = now()
        else:
            await self.stop(request.app_id, api_pb2.AppDisconnectReason.Name(request.reason))

    async def rpc_AppStop(self, request: api_pb2.AppStopRequest, container: Asker) -> None:
        await self.stop(request.app_id, "APP_STOP")
