"""The server of the Hub's stand-in: what it answers to which request, and its log.

Large and binary files are answered, as by the real Hub, with a redirect to a second origin (the "CDN", another port of
127.0.0.1) through a signed address that needs no token.
"""

import hmac
import json
import re
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO
from urllib.parse import quote, unquote, urlencode

from aiohttp import web

from hub_server.descriptions import describe, entries, entry
from hub_server.faults import Faults, hang_up
from hub_server.store import KINDS, Blob, Commit, Store

_PIECE = 1 << 16  # bytes of a body that are sent at once


class Refused(Exception):
    """A request that is answered with an error, in the Hub's way of saying it."""

    def __init__(self, status: int, code: str | None, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code

    def response(self) -> web.Response:
        headers = {"X-Error-Message": str(self)} | ({"X-Error-Code": self.code} if self.code else {})
        return web.json_response({"error": str(self)}, status=self.status, headers=headers)


@dataclass
class Hub:
    """Serves `store`. The repositories in `gated` open for `token` only, or for any token if that is None."""

    store: Store
    faults: Faults
    gated: frozenset[str]
    token: str | None
    log: TextIO
    url: str = ""
    _cdn: str = ""
    _secret: bytes = field(default_factory=lambda: secrets.token_bytes(16))

    async def start(self) -> web.AppRunner:
        """Listens on two free ports of loopback, until the runner's cleanup()."""
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        for _ in range(2):
            await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url, self._cdn = (f"http://127.0.0.1:{address[1]}" for address in runner.addresses)
        return runner

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        path = request.raw_path.split("?")[0]
        record = {
            "time": round(time.time(), 3),
            "method": request.method,
            "path": unquote(path),
            "query": request.query_string,
            "range": request.headers.get("Range"),
            "token": "Authorization" in request.headers,
            "status": None,
            "bytes": 0,  # of a file's body
            "fault": None,
        }
        try:
            try:
                response = self._fault(request, record) or await self._route(request, path.split("/")[1:], record)
            except Refused as refused:
                response = refused.response()
            record["status"] = response.status
            return response
        finally:
            self.log.write(json.dumps(record) + "\n")

    def _fault(self, request: web.Request, record: dict) -> web.Response | None:
        status = self.faults.status(request)
        if status is None:
            return None
        record["fault"] = str(status)
        headers = {"Retry-After": "0"}
        if status == 429:
            headers |= {"RateLimit": '"api";r=0;t=0', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'}
        return web.json_response({"error": f"fake {status}"}, status=status, headers=headers)

    async def _route(self, request: web.Request, parts: list[str], record: dict) -> web.StreamResponse:
        if parts[0] == "cdn":
            return await self._cdn_file(request, parts, record)
        parts = [unquote(part) for part in parts]
        if parts[0] == "api" and len(parts) >= 4 and parts[1] in KINDS:
            verb, revision = parts[4:6] if len(parts) > 5 else ("revision", "main")
            return await self._api(request, parts[1], "/".join(parts[2:4]), verb, revision, "/".join(parts[6:]))
        kind, rest = ("datasets", parts[1:]) if parts[0] == "datasets" else ("models", parts)
        if len(rest) > 4 and rest[2] == "resolve":
            return await self._file(request, kind, "/".join(rest[:2]), rest[3], "/".join(rest[4:]), record)
        raise Refused(404, None, "Not Found")

    def _commit(self, kind: str, repo: str, revision: str) -> Commit:
        try:
            return self.store.resolve(kind, repo, revision)
        except KeyError:
            raise Refused(404, "RepoNotFound", "Repository not found") from None
        except LookupError:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}") from None

    def _check_access(self, request: web.Request, repo: str) -> None:
        if repo not in self.gated:
            return
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not token:
            raise Refused(401, "GatedRepo", f"Access to {repo} is restricted. Please log in.")
        if self.token not in (None, token):
            raise Refused(403, "GatedRepo", f"Access to {repo} is restricted: you are not in the authorized list.")

    async def _api(
        self, request: web.Request, kind: str, repo: str, verb: str, revision: str, path: str
    ) -> web.Response:
        commit = self._commit(kind, repo, revision)
        wants = {
            name: request.query.get(name, "").lower() in ("true", "1") for name in ("blobs", "recursive", "expand")
        }
        if verb == "revision":
            return web.json_response(describe(kind, repo, commit, wants["blobs"], repo in self.gated))
        if verb == "tree":
            rows = entries(path, commit, wants["recursive"], wants["expand"])
            if path and not rows:
                raise Refused(404, "EntryNotFound", f'{path} does not exist on "{revision}"')
            return web.json_response(rows, headers={"X-Repo-Commit": commit.sha})
        if verb == "paths-info" and request.method == "POST":
            form = await request.post()
            expand = str(form.get("expand", "")).lower() == "true"
            rows = [entry(one.strip("/"), commit, expand) for one in form.getall("paths", [])]
            return web.json_response([row for row in rows if row])
        raise Refused(404, None, f"this stand-in for the Hub has no {request.method} {verb}")

    async def _file(
        self, request: web.Request, kind: str, repo: str, revision: str, path: str, record: dict
    ) -> web.StreamResponse:
        commit = self._commit(kind, repo, revision)
        self._check_access(request, repo)
        blob = commit.files.get(path)
        if blob is None:
            refused = Refused(404, "EntryNotFound", "Entry not found").response()
            refused.headers["X-Repo-Commit"] = commit.sha
            return refused
        headers = {"X-Repo-Commit": commit.sha}
        if not blob.lfs:
            return await self._send(request, blob, headers, record)
        target = f"/cdn/{kind}/{repo}/{commit.sha}/{path}"
        headers |= {
            "X-Linked-Size": str(blob.size),
            "X-Linked-ETag": f'"{blob.sha256}"',
            "Location": f"{self._cdn}{quote(target)}?{urlencode({'Signature': self._sign(target)})}",
        }
        return web.Response(status=302, text="Found. Redirecting", headers=headers)

    def _sign(self, path: str) -> str:
        return hmac.new(self._secret, path.encode(), "sha256").hexdigest()

    async def _cdn_file(self, request: web.Request, parts: list[str], record: dict) -> web.StreamResponse:
        path = unquote("/".join(parts))
        if not hmac.compare_digest(request.query.get("Signature", ""), self._sign(f"/{path}")):
            raise Refused(403, None, "Bad signature")
        _, kind, organization, name, sha, file = path.split("/", 5)
        blob = self._commit(kind, f"{organization}/{name}", sha).files[file]
        return await self._send(request, blob, {}, record)

    async def _send(self, request: web.Request, blob: Blob, headers: dict, record: dict) -> web.StreamResponse:
        """A file's body, or the range of it that is asked for, as far as faults let it through."""
        start, end = 0, blob.size
        headers |= {"ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", "")):
            start, end = int(asked[1]), min(blob.size, int(asked[2]) + 1) if asked[2] else blob.size
            if start >= end:
                raise Refused(416, None, "Range not satisfiable")
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{blob.size}"
        record["status"] = 206 if asked else 200
        response = web.StreamResponse(status=record["status"], headers=headers)
        response.content_length = end - start
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        after, kind = self.faults.break_off(request, (blob.disk,), end - start) or (end - start, None)
        content = memoryview(_read(blob.disk, start, after))
        for offset in range(0, len(content), _PIECE):
            piece = content[offset : offset + _PIECE]
            await response.write(piece)
            record["bytes"] += len(piece)
        if kind:
            record["fault"] = kind
            await hang_up(request, kind)
        return response


def _read(path: Path, start: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(length)
