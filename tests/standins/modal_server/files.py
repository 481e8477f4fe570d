"""Files that a client sends: those of mounts and volumes, by hash, and large ones through HTTP, as blobs."""

import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp.web
from modal_proto import api_pb2

from modal_server.service import Answer, Asker, Service

if TYPE_CHECKING:
    from modal_server.server import Server


class Files(Service):
    """All files are kept under the state's folder; `mounts` are (hash, mode) of files by path, by the mount's id."""

    def __init__(self, server: "Server") -> None:
        super().__init__(server)
        self.mounts: dict[str, dict[str, tuple[str, int]]] = {}
        for name in ("files", "blobs"):
            (server.state / name).mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        return self.server.state / "files" / sha256

    def blob(self, id_: str) -> Path:
        return self.server.state / "blobs" / Path(id_).name

    async def rpc_BlobCreate(self, request: api_pb2.BlobCreateRequest, container: Asker) -> Answer:
        id_ = self.server.new_id("bl")
        urls = api_pb2.UploadUrlList(items=[f"{self.server.http_url}/blob/{id_}"])
        return api_pb2.BlobCreateResponse(blob_ids=[id_], upload_urls=urls)

    async def http_put(self, request: aiohttp.web.Request) -> aiohttp.web.Response:
        """Receives the blob that BlobCreate gave an address to."""
        content = await request.read()
        self.blob(request.match_info["name"]).write_bytes(content)
        return aiohttp.web.Response(text="ok", headers={"ETag": f'"{hashlib.md5(content).hexdigest()}"'})

    async def rpc_MountBatchedCheckExistence(
        self, request: api_pb2.MountBatchedCheckExistenceRequest, container: Asker
    ) -> Answer:
        missing = [sha256 for sha256 in request.sha256_hex_hashes if not self.path(sha256).exists()]
        return api_pb2.MountBatchedCheckExistenceResponse(missing_sha256_hex_hashes=missing)

    async def rpc_MountPutFile(self, request: api_pb2.MountPutFileRequest, container: Asker) -> Answer:
        path = self.path(request.sha256_hex)
        source = request.WhichOneof("data_oneof")
        if source is None:
            return api_pb2.MountPutFileResponse(exists=path.exists())
        content = request.data if source == "data" else self.blob(request.data_blob_id).read_bytes()
        if hashlib.sha256(content).hexdigest() != request.sha256_hex:
            self.refuse("INVALID_ARGUMENT", "sha256 mismatch")
        temporary = path.with_name(f"{path.name}.tmp")
        temporary.write_bytes(content)
        temporary.replace(path)
        return api_pb2.MountPutFileResponse(exists=True)

    async def rpc_MountGetOrCreate(self, request: api_pb2.MountGetOrCreateRequest, container: Asker) -> Answer:
        id_ = self.server.new_id("mo")
        self.mounts[id_] = {file.filename: (file.sha256_hex, file.mode) for file in request.files}
        metadata = api_pb2.MountHandleMetadata(content_checksum_sha256_hex="0" * 64)
        return api_pb2.MountGetOrCreateResponse(mount_id=id_, handle_metadata=metadata)

    def write_mount(self, id_: str, root: Path) -> None:
        """Writes a mount's files under `root`. Mounts of Modal's own, which it only names, are empty here."""
        for name, (sha256, mode) in self.mounts[id_].items():
            target = root / name.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.path(sha256), target)
            target.chmod((mode or 0o644) | 0o400)
