"""Runs a command whose Hub is the stand-in, and ends with the command's exit code."""

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path

from hub_server.faults import Fault, Faults
from hub_server.server import Hub
from hub_server.store import Store


def main(arguments: list[str]) -> int:
    """The exit code of the command after "--"."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(
        prog="fake_hub.py", description=__doc__, usage="%(prog)s ROOT [options] -- COMMAND..."
    )
    parser.add_argument("root", type=Path, help="has models/ORG/NAME/<files> and datasets/ORG/NAME/<files>")
    parser.add_argument("--log", type=Path, default=Path(os.devnull), help="append a JSON object per request")
    parser.add_argument("--require-token", metavar="TOKEN", help="the one token that opens gated repositories")
    parser.add_argument("--gated", action="append", default=[], metavar="ORG/NAME", help="may be repeated")
    parser.add_argument("--fail-after-bytes", type=int, help="every file breaks off once after this many bytes")
    parser.add_argument(
        "--fault",
        action="append",
        default=[],
        type=Fault.parse,
        metavar="KIND:TIMES:REGEX",
        help='of "METHOD /path"; KIND is a status, drop or reset: "503:2:GET .*/resolve/main/config", "drop:1:train-"',
    )
    options = parser.parse_args(arguments[:cut])
    command = arguments[cut + 1 :]
    if not command:
        parser.error("no COMMAND")
    if not options.root.is_dir():
        parser.error(f"{options.root} is not a folder")
    return asyncio.run(_run(options, command))


async def _run(options: argparse.Namespace, command: list[str]) -> int:
    with options.log.open("a", buffering=1, encoding="utf-8") as log:
        hub = Hub(
            Store(options.root),
            Faults(options.fault, options.fail_after_bytes),
            frozenset(options.gated),
            options.require_token,
            log,
        )
        runner = await hub.start()
        try:
            child = await asyncio.create_subprocess_exec(*command, env=_environment(hub.url))
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, child.send_signal, number)
            code = await child.wait()
        except FileNotFoundError as error:
            print(f"fake_hub: {error}", file=sys.stderr)
            code = 127
        finally:
            await runner.cleanup()
    return 128 - code if code < 0 else code


def _environment(url: str) -> dict[str, str]:
    """This process's environment, with the stand-in as the one Hub."""
    return os.environ | {
        "HF_ENDPOINT": url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # or `datasets` asks another server
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }
