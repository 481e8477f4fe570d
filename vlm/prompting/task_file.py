"""Writes the winning wording as a task's file of its own, beside the task's."""

import io
import re
from pathlib import Path
from typing import Any

from ruamel.yaml.scalarstring import LiteralScalarString

from vlm.config.errors import InputError
from vlm.config.pins import file_of
from vlm.config.prompts import Wording
from vlm.config.task import Task
from vlm.config.yaml_files import round_trip

_MARK = "# Written by the prompt search"  # how it recognises the files that it may overwrite


def require_writable(name: str) -> Path:
    """The path of configs/tasks/<name>.yaml. Raises InputError for no name, and for a file that a person wrote."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise InputError(f"--out: {name!r} should be the name of a file in configs/tasks, without .yaml")
    file = file_of("tasks", name)
    if file.exists() and _MARK not in file.read_text(encoding="utf-8"):
        raise InputError(f"--out: {file} is there, and the prompt search did not write it; choose another name")
    return file


def write(task: Task, wording: Wording, name: str) -> Path:
    """Writes `task`'s file, with its comments and `wording`, to configs/tasks/<name>.yaml. See `require_writable`."""
    file, source = require_writable(name), file_of("tasks", task.name)
    yaml = round_trip()
    values = yaml.load(source.read_text(encoding="utf-8"))
    before = Wording.of(task)
    for key in Wording.model_fields:
        value = getattr(wording, key)
        if value != getattr(before, key):
            _set(values if key in ("words", "descriptions", "answer") else values["prompt"], key, value)
    written = io.StringIO()
    yaml.dump(values, written)
    head = (
        f"# dvc exp run -S task={name}\n{_MARK} from {source.as_posix()}. Its next run overwrites this file, "
        "unless this line is removed.\n"
    )
    file.write_text(head + re.sub(r"\A# dvc .*\n", "", written.getvalue()), encoding="utf-8")
    return file


def _set(block: Any, key: str, value: Any) -> None:
    if value is None or value == {}:
        block.pop(key, None)
    elif isinstance(value, str) and "\n" in value:
        block[key] = LiteralScalarString(value)
    else:
        block[key] = value
