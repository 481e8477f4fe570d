"""Images and secrets. No image is built: a container has this machine's system and the interpreter that runs us."""

import hashlib
import re
import shlex
import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from modal_proto import api_pb2

from modal_server.records import IMAGE_BUILDER
from modal_server.service import Answer, Asker, Service

if TYPE_CHECKING:
    from modal_server.server import Server

_Result = api_pb2.GenericResult


class Images(Service):
    """Every image, by id, as the client describes it."""

    def __init__(self, server: "Server") -> None:
        super().__init__(server)
        self.protos: dict[str, api_pb2.Image] = {}

    async def rpc_ImageGetOrCreate(self, request: api_pb2.ImageGetOrCreateRequest, container: Asker) -> Answer:
        id_ = "im-" + hashlib.sha256(request.image.SerializeToString(deterministic=True)).hexdigest()[:22]
        built = id_ in self.protos
        self.protos[id_] = request.image
        result = _Result(status=_Result.GENERIC_STATUS_SUCCESS) if built else _Result()
        return api_pb2.ImageGetOrCreateResponse(image_id=id_, result=result, metadata=self._metadata())

    async def rpc_ImageJoinStreaming(
        self, request: api_pb2.ImageJoinStreamingRequest, container: Asker
    ) -> AsyncIterator[api_pb2.ImageJoinStreamingResponse]:
        result = _Result(status=_Result.GENERIC_STATUS_SUCCESS)
        failing = self.server.options.fail_image_build
        if failing and any(re.search(failing, line) for line in self.protos[request.image_id].dockerfile_commands):
            result = _Result(status=_Result.GENERIC_STATUS_FAILURE, exception="fake image build failure")
        yield api_pb2.ImageJoinStreamingResponse(result=result, metadata=self._metadata(), entry_id="1-0", eof=True)

    @staticmethod
    def _metadata() -> api_pb2.ImageMetadata:
        version = ".".join(map(str, sys.version_info[:3]))
        return api_pb2.ImageMetadata(image_builder_version=IMAGE_BUILDER, python_version_info=f"Python {version}")

    def commands(self, id_: str) -> list[str]:
        """The lines of its Dockerfile, from the base's on."""
        proto = self.protos[id_]
        below = [line for base in proto.base_images[:1] for line in self.commands(base.image_id)]
        return [*below, *proto.dockerfile_commands]

    def environment(self, id_: str) -> dict[str, str]:
        """What its ENV lines set."""
        values = {}
        for line in self.commands(id_):
            if match := re.match(r"ENV\s+([A-Za-z_]\w*)[= ](.*)$", line):
                values[match[1]] = " ".join(shlex.split(match[2]))
        return values


class Secrets(Service):
    """The values of each secret, by its id. There are only those that a client makes of values (Secret.from_dict)."""

    def __init__(self, server: "Server") -> None:
        super().__init__(server)
        self.values: dict[str, dict[str, str]] = {}

    async def rpc_SecretGetOrCreate(self, request: api_pb2.SecretGetOrCreateRequest, container: Asker) -> Answer:
        if request.deployment_name:
            self.refuse("NOT_FOUND", f"Secret '{request.deployment_name}' not found")
        id_ = self.server.new_id("st")
        self.values[id_] = dict(request.env_dict)
        return api_pb2.SecretGetOrCreateResponse(secret_id=id_)
