"""The log of what a command asked of Modal, and of what became of it."""

import json
import sys
import time
from pathlib import Path


def now() -> float:
    """The time in the log's precision."""
    return round(time.time(), 3)


class Journal:
    """`data` is the log, which `write` brings to its file."""

    def __init__(self, file: Path, command: list[str]) -> None:
        self._file = file
        self.data: dict = {
            "command": command,
            "started": now(),
            "ended": None,
            "exit_code": None,
            "apps": {},
            "functions": {},
            "calls": [],
            "containers": [],
            "uploads": [],
            "commits": [],
            "events": [],
            "warnings": [],  # what works here, and might not on Modal
            "unimplemented": [],
        }

    def event(self, kind: str, **values: object) -> None:
        self.data["events"].append({"time": now(), "event": kind, **values})

    def warn(self, message: str) -> None:
        if message not in self.data["warnings"]:
            self.data["warnings"].append(message)
            print(f"[fake-modal] warning: {message}", file=sys.stderr, flush=True)

    def write(self) -> None:
        temporary = self._file.with_name(f"{self._file.name}.tmp")
        temporary.write_text(json.dumps(self.data, indent=1, default=str))
        temporary.replace(self._file)
