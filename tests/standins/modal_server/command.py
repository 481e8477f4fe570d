"""Runs a command whose Modal is the stand-in, and ends with the command's exit code."""

import argparse
import asyncio
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from modal_server.inputs import Preemption
from modal_server.journal import now
from modal_server.sandbox import unshare
from modal_server.server import TOKEN, Server


def main(arguments: list[str]) -> int:
    """The exit code of the command after "--"."""
    parser = argparse.ArgumentParser(prog="fake_modal.py", description=__doc__)
    parser.add_argument("--log", type=Path, default=Path("fake_modal.json"), help="what was asked of Modal, as JSON")
    parser.add_argument("--state", type=Path, help="a folder for volumes and containers; default: a temporary one")
    parser.add_argument("--no-credentials", action="store_true", help="give COMMAND no token")
    parser.add_argument("--fail-image-build", metavar="REGEX", help="of a line of the Dockerfile")
    parser.add_argument("--startup", type=Path, metavar="FILE.py", help="code that every container runs first")
    parser.add_argument(
        "--preempt",
        action="append",
        default=[],
        type=Preemption.parse,
        metavar="FUNCTION@10s|FUNCTION@commit:2|FUNCTION@put:2",
        help="preempt a container of the function once: 10 s into an input, or after its second commit or queue put",
    )
    parser.add_argument(
        "--preempt-mode",
        choices=["int", "kill"],
        default="int",
        help="int: SIGINT, time to save and a last commit, then SIGKILL; kill: SIGKILL at once",
    )
    parser.add_argument(
        "--hold",
        type=Preemption.parse,
        metavar="FUNCTION@commit:2",
        help="answer the second commit of a container of the function, once, when the container is told to stop",
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND...")
    options = parser.parse_args(arguments)
    options.command = options.command[options.command[:1] == ["--"] :]
    if not options.command:
        parser.error("no COMMAND")
    namespaces = unshare()
    if namespaces is None:
        parser.error("this machine gives no mount namespaces: `unshare --mount` works neither as root nor as a user")
    options.log = options.log.resolve()
    temporary = None
    if options.state is None:
        # A short path: that of a socket has at most 100 characters
        options.state = temporary = Path(tempfile.mkdtemp(prefix="fm-", dir="/tmp"))
    try:
        return asyncio.run(_run(Server(options, namespaces)))
    finally:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)


async def _run(server: Server) -> int:
    await server.start()
    journal = server.journal
    journal.write()
    code = 127
    try:
        process = await asyncio.create_subprocess_exec(*server.options.command, env=_environment(server))
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, _pass_on, process, number)
        code = await process.wait()
    except FileNotFoundError as error:
        print(f"fake_modal: {error}", file=sys.stderr)
    finally:
        await server.shutdown()
        journal.data.update(ended=now(), exit_code=code)
        journal.write()
    return 128 - code if code < 0 else code


def _pass_on(process: asyncio.subprocess.Process, number: int) -> None:
    """A terminal sends its Ctrl-C to the command, too; other signals reach only us."""
    if process.returncode is None and not sys.stdin.isatty():
        process.send_signal(number)


def _environment(server: Server) -> dict[str, str]:
    """This process's environment, with the stand-in as the one Modal."""
    values = {name: value for name, value in os.environ.items() if not name.startswith("MODAL_")}
    values |= {"MODAL_SERVER_URL": server.url, "MODAL_CONFIG_PATH": str(server.state / "no-such-modal.toml")}
    return values if server.options.no_credentials else values | TOKEN
