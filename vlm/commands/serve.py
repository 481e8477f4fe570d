"""`python -m vlm serve`: the exported classifier over HTTP, `POST /classify` with a picture.

    curl --data-binary @photo.jpg http://127.0.0.1:8000/classify
    curl --form picture=@photo.jpg http://127.0.0.1:8000/classify

The answer is JSON: the most probable label and its probability, the five most probable labels, and the milliseconds
that decoding the picture and answering took, without those of waiting for other requests. An error is JSON as well, a
line of text in `error`. `GET /health` says whether the server is up. Pictures are not stored or logged.
"""

import argparse
import asyncio
import contextlib
import socket
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.config.errors import InputError
from vlm.edge.classifier import Classifier
from vlm.edge.llama import Llama
from vlm.sources import pictures

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request

_MAX_BYTES = 20_000_000  # of a request
_TOP = 5


def application(llama: Llama, classifier: Classifier) -> "Starlette":
    """The web application. It asks the model about one picture at a time; other requests wait."""
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    one_at_a_time = asyncio.Lock()

    async def classify(request: Request) -> JSONResponse:
        data = await _picture(request)
        async with one_at_a_time:
            try:
                return JSONResponse(await run_in_threadpool(_answer, llama, classifier.labels, data))
            except pictures.Unreadable as error:
                raise HTTPException(400, f"the picture {error}") from None
            except InputError as error:  # the picture is too narrow
                raise HTTPException(400, str(error)) from None

    async def health(request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok", "task": classifier.task, "labels": len(classifier.labels)})

    async def as_json(request: Request, error: Exception) -> JSONResponse:
        if isinstance(error, HTTPException) and error.status_code in (404, 405):
            return JSONResponse({"error": "POST a picture to /classify"}, error.status_code, error.headers)
        if isinstance(error, HTTPException):
            return JSONResponse({"error": error.detail}, error.status_code, error.headers)
        return JSONResponse({"error": f"{type(error).__name__}: {error}"}, 500)

    routes = [Route("/classify", classify, methods=["POST"]), Route("/health", health, methods=["GET"])]
    return Starlette(routes=routes, exception_handlers={HTTPException: as_json, Exception: as_json})


async def _picture(request: "Request") -> bytes:
    """The picture in a request: its body, or the first file of a form. Raises HTTPException if there is none."""
    from starlette.datastructures import UploadFile
    from starlette.exceptions import HTTPException
    from starlette.requests import Request

    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= _MAX_BYTES:  # the rest is read as well, because clients read no answer before they have sent all
            chunks.append(chunk)
    if size > _MAX_BYTES:
        raise HTTPException(413, f"the request has {size:,} bytes; at most {_MAX_BYTES:,} are allowed")
    body = b"".join(chunks)
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return body

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    async with Request(request.scope, receive).form() as form:
        for field in form.values():
            if isinstance(field, UploadFile):
                return await field.read()
    raise HTTPException(400, "the form has no file; send the picture as one: curl --form picture=@photo.jpg")


def _answer(llama: Llama, labels: tuple[str, ...], data: bytes) -> dict[str, Any]:
    """What a request gets. Raises pictures.Unreadable."""
    start = time.perf_counter()
    probabilities = llama.posterior(pictures.upright(data))
    best = (-probabilities).argsort(kind="stable")[:_TOP]
    top = [{"label": labels[label], "probability": float(f"{probabilities[label]:.6g}")} for label in best]
    return {**top[0], "labels": top, "milliseconds": round(1e3 * (time.perf_counter() - start), 1)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path("models/edge"),
        metavar="FOLDER",
        help="an exported classifier (default: models/edge)",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="the address to listen on (default: 127.0.0.1, this machine only; there is no authentication)",
    )
    parser.add_argument(
        "--port", type=int, default=8000, metavar="N", help="the port to listen on (default: 8000); 0: any free one"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="of llama.cpp (default: one for each core)")


def main(arguments: argparse.Namespace) -> int:
    for package in ("starlette", "uvicorn", "python_multipart"):
        if find_spec(package) is None:
            raise InputError(f"the package {package} is not installed; `uv sync` installs it")
    import uvicorn

    classifier = Classifier.load(arguments.folder)
    with _listening(arguments.host, arguments.port) as listener, Llama(arguments.folder, arguments.threads) as llama:
        config = uvicorn.Config(application(llama, classifier), log_level="warning")
        host, port = listener.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        print(f"{classifier.task}, {len(classifier.labels)} labels: POST {address}/classify; Ctrl-C stops", flush=True)
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again when it has finished the requests
            uvicorn.Server(config).run(sockets=[listener])
    return 0


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises InputError."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=128)
    except (OSError, OverflowError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).partition(" (while ")[0].lower()
        raise InputError(f"--host {host} --port {port}: cannot be listened on: {reason}; choose others") from None
