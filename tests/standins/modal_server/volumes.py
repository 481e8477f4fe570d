"""Volumes: their files, for clients; copies.py has what containers do with them."""

import shutil
import time
import urllib.parse
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp.web
from modal_proto import api_pb2

from modal_server.copies import Copies, copy_file
from modal_server.journal import now
from modal_server.records import ENVIRONMENT, Container, Input
from modal_server.service import Answer, Asker, Service

if TYPE_CHECKING:
    from modal_server.server import Server

_BLOCK = 8 * 1024 * 1024  # bytes that a client downloads at once
_Kind = api_pb2.FileEntry.FileType


@dataclass
class Volume:
    """A named volume: a folder of the state, which survives a run with the same --state."""

    id: str
    name: str
    folder: Path

    def path(self, name: str) -> Path:
        """Of a file in it."""
        return self.folder / name.lstrip("/")

    def metadata(self) -> api_pb2.VolumeMetadata:
        creation = api_pb2.CreationInfo(created_at=time.time(), created_by="nobody")
        return api_pb2.VolumeMetadata(version=1, name=self.name, creation_info=creation)


class Volumes(Service):
    """Every volume, by id."""

    def __init__(self, server: "Server") -> None:
        super().__init__(server)
        self._volumes: dict[str, Volume] = {}
        self._folder = server.state / "volumes" / ENVIRONMENT
        self._folder.mkdir(parents=True, exist_ok=True)
        self.copies = Copies(server.journal)
        for folder in self._folder.iterdir():
            self._make(folder.name)

    def __getitem__(self, id_: str) -> Volume:
        if id_ not in self._volumes:
            self.refuse("NOT_FOUND", "Volume not found")
        return self._volumes[id_]

    def all(self) -> list[Volume]:
        return list(self._volumes.values())

    async def rpc_VolumeGetOrCreate(self, request: api_pb2.VolumeGetOrCreateRequest, container: Asker) -> Answer:
        name = request.deployment_name
        volume = next((volume for volume in self.all() if volume.name == name), None)
        if volume is None:
            if request.object_creation_type != api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING:
                self.refuse("NOT_FOUND", f"Volume '{name}' not found in environment '{ENVIRONMENT}'.")
            volume = self._make(name)
        return api_pb2.VolumeGetOrCreateResponse(volume_id=volume.id, version=1, metadata=volume.metadata())

    def _make(self, name: str) -> Volume:
        volume = Volume(self.server.new_id("vo"), name, self._folder / name)
        volume.folder.mkdir(exist_ok=True)
        self._volumes[volume.id] = volume
        return volume

    async def rpc_VolumePutFiles(self, request: api_pb2.VolumePutFilesRequest, container: Asker) -> None:
        volume = self[request.volume_id]
        for file in request.files:
            path = volume.path(file.filename)
            if request.disallow_overwrite_existing_files and path.exists():
                self.refuse("ALREADY_EXISTS", f"{file.filename}: already exists")
            copy_file(self.server.files.path(file.sha256_hex), path)
            path.chmod(file.mode or 0o644)
            self.journal.data["uploads"].append(
                {
                    "time": now(),
                    "volume": volume.name,
                    "path": f"/{file.filename.lstrip('/')}",
                    "bytes": path.stat().st_size,
                    "sha256": file.sha256_hex,
                }
            )

    async def rpc_VolumeListFiles(
        self, request: api_pb2.VolumeListFilesRequest, container: Asker
    ) -> AsyncIterator[api_pb2.VolumeListFilesResponse]:
        volume = self[request.volume_id]
        top = volume.path(request.path)
        if not top.exists():
            self.refuse("NOT_FOUND", f"No such file or directory: {request.path}")
        paths = [top] if top.is_file() else sorted(top.rglob("*") if request.recursive else top.iterdir())
        entries = [
            api_pb2.FileEntry(
                path=str(path.relative_to(volume.folder)),
                type=_Kind.DIRECTORY if path.is_dir() else _Kind.FILE,
                mtime=int(path.stat().st_mtime),
                size=0 if path.is_dir() else path.stat().st_size,
            )
            for path in paths
        ]
        yield api_pb2.VolumeListFilesResponse(entries=entries)

    async def rpc_VolumeGetFile2(self, request: api_pb2.VolumeGetFile2Request, container: Asker) -> Answer:
        volume = self[request.volume_id]
        path = volume.path(request.path)
        if not path.is_file():
            self.refuse("NOT_FOUND", f"File not found: {request.path}")
        size = path.stat().st_size
        start = min(request.start, size)
        end = min(size, start + request.len) if request.len else size
        urls, position = [], start
        while position < end:
            following = min(end, (position // _BLOCK + 1) * _BLOCK)
            query = urllib.parse.urlencode({"path": request.path, "start": position, "end": following})
            urls.append(f"{self.server.http_url}/volume/{volume.id}?{query}")
            position = following
        return api_pb2.VolumeGetFile2Response(get_urls=urls, size=size, start=start, len=end - start)

    async def http_get(self, request: aiohttp.web.Request) -> aiohttp.web.Response:
        """Sends the block that VolumeGetFile2 gave an address to."""
        path = self[request.match_info["id"]].path(request.query["path"])
        start, end = int(request.query["start"]), int(request.query["end"])
        with path.open("rb") as file:
            file.seek(start)
            return aiohttp.web.Response(body=file.read(end - start))

    async def rpc_VolumeRemoveFile(self, request: api_pb2.VolumeRemoveFileRequest, container: Asker) -> None:
        path = self[request.volume_id].path(request.path)
        if not path.exists():
            self.refuse("NOT_FOUND", f"File not found: {request.path}")
        if path.is_file():
            path.unlink()
        elif request.recursive:
            shutil.rmtree(path)
        else:
            self.refuse("INVALID_ARGUMENT", f"{request.path} is a directory, use recursive=True")
        self.journal.event("volume_remove", path=request.path)

    rpc_VolumeRemoveFile2 = rpc_VolumeRemoveFile

    async def rpc_VolumeCommit(self, request: api_pb2.VolumeCommitRequest, container: Asker) -> Answer:
        if container is None:
            self.refuse("FAILED_PRECONDITION", "commit() can only be called from a container")
        await self.copies.commit(container, self[request.volume_id])
        container.commits += 1
        self.server.inputs.counted(container, "commit", container.commits)
        await self.server.inputs.hold(container)
        # Modal may skip the reload that its client adds to a commit, but does not promise to.
        return api_pb2.VolumeCommitResponse(skip_reload=False)

    async def rpc_VolumeReload(self, request: api_pb2.VolumeReloadRequest, container: Asker) -> None:
        if container is None:
            self.refuse("FAILED_PRECONDITION", "reload() can only be called from a container")
        held = await self.copies.held(container, self[request.volume_id])
        if held:
            self.journal.warn(f"{container.function.name}: reload refused, for these are open: {', '.join(held[:3])}")
            self.refuse("FAILED_PRECONDITION", "there are open files preventing the operation")
        await self.copies.reload(container, self[request.volume_id])

    def check_committed(self, container: Container, one: Input) -> None:
        """Warns where a caller that reads a volume now may not see what the function has written there."""
        for id_ in container.copies:
            changed = self.copies.changes(container, self[id_])
            if changed:
                one.record["attempts"][-1]["uncommitted"] = changed[:50]
                self.journal.warn(f"{container.function.name} returned before a commit of {', '.join(changed[:3])}")
