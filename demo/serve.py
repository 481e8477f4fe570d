"""`make demo`: serves the demo on this machine only, from demo/ and the exported classifier in models/edge/.

Needs nothing but Python's standard library.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

DEMO = Path(__file__).parent.resolve()
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".wasm": "application/wasm"}


class Handler(SimpleHTTPRequestHandler):
    """The page's files at /, the exported classifier's at /edge/. Lists no folders and serves no hidden files."""

    extensions_map = {**SimpleHTTPRequestHandler.extensions_map, **TYPES}  # noqa: RUF012

    def __init__(self, *args, edge: Path, **kwargs) -> None:
        self._edge = edge
        super().__init__(*args, directory=str(DEMO), **kwargs)

    def translate_path(self, path: str) -> str:
        file = Path(super().translate_path(path))
        if file == DEMO:
            return str(DEMO / "index.html")
        if file.is_relative_to(DEMO / "edge"):
            file = self._edge / file.relative_to(DEMO / "edge")
        hidden = any(part.startswith(".") for part in Path(path).parts)
        # SimpleHTTPRequestHandler answers 404 for a file that does not exist.
        return str(file if file.is_file() and file.suffix != ".py" and not hidden else DEMO / "none")

    def end_headers(self) -> None:
        # Only pages that are isolated in this way may use several threads.
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cache-Control", "no-cache")  # a new export is served at once
        super().end_headers()

    def log_message(self, *args: object) -> None:
        pass


def server(edge: Path, port: int) -> ThreadingHTTPServer:
    """A server on the loopback interface; port 0 takes one that is free. Raises OSError if the port is taken."""
    return ThreadingHTTPServer(("127.0.0.1", port), partial(Handler, edge=edge))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Serves the demo on this machine.")
    parser.add_argument("--port", type=int, default=0, help="default: one that is free")
    parser.add_argument("--edge", type=Path, default=Path("models/edge"), help="default: models/edge")
    options = parser.parse_args(arguments)
    if not (options.edge / "classifier.json").is_file():
        sys.exit(f"{options.edge}: has no classifier.json; `dvc repro export` writes it")
    if not (DEMO / "vendor/wllama/index.js").is_file():
        sys.exit("demo/vendor/wllama is missing; `make demo-files` fetches it")
    try:
        running = server(options.edge, options.port)
    except (OSError, OverflowError) as error:  # OverflowError: above 65535
        reason = getattr(error, "strerror", None) or str(error)
        sys.exit(f"--port {options.port}: {reason.lower()}; without --port a free one is taken")
    try:
        with running:
            print(f"the demo is at http://127.0.0.1:{running.server_port} (Ctrl-C ends it)", flush=True)
            running.serve_forever()
    except KeyboardInterrupt:
        print()


if __name__ == "__main__":
    main()
