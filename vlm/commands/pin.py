"""`python -m vlm pin`: writes the current commit or hash of a model and a data set into their configuration files.

The pin is a commit for a repository on the Hub, and a hash of the files for a folder; later runs load that commit or
check the hash. Badges are rendered from the seed and need no pin.
"""

import argparse
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode

from vlm.config import hub, pins
from vlm.config.errors import InputError
from vlm.config.models import load_model
from vlm.config.params import load_params
from vlm.config.task import load_task
from vlm.sources import hub_datasets


def pin_model(name: str) -> str:
    """Writes a model's pin into its file; keeps an existing commit. Returns a one-line message. Raises InputError."""
    model, file = load_model(name), pins.file_of("models", name)
    if model.folder is not None:
        found = pins.folder_hash(model.folder)
    else:
        found = hub.resolve(model.id, model.revision, "model", f"{file}: id")
    return _write(file, ["revision"], _quoted(found))


def pin_task(name: str) -> str:
    """Writes the pin of a task's data into its file, like `pin_model`. Returns a message. Raises InputError."""
    task = load_task(name)
    source, file = task.source, pins.file_of("tasks", name)
    if source.badges is not None:
        return f"{file}: badges are rendered from the seed; there is nothing to pin"
    if source.folder is not None:
        if not source.folder_path.is_dir():
            raise InputError(f"{file}: source.folder: {source.folder!r} is not a folder here")
        return _write(file, ["source", "sha256"], pins.folder_hash(source.folder_path))
    found = hub.resolve(source.hub, source.revision, "dataset", f"{file}: source.hub")
    if source.expect is not None:
        for key, rows in hub_datasets.count_rows(task, found).items():
            _write(file, ["source", "expect", key], str(rows))
        _write(file, ["source", "expect", "revision"], _quoted(found))
    return _write(file, ["source", "revision"], _quoted(found))


def _write(file: Path, path: list[str], value: str) -> str:
    """Sets a value in a YAML file and leaves the rest of the file unchanged. Returns a message."""
    text = file.read_bytes().decode()  # read_text would turn \r\n into \n
    changed = _set(text, path, value)
    if changed == text:
        hint = "" if value.startswith("sha256:") else "; to pin the newest, set it to null first"
        return f"{file}: {'.'.join(path)}: still {value}{hint}"
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_bytes(changed.encode())
    temporary.replace(file)
    return f"{file}: {'.'.join(path)}: {value}"


def _quoted(text: str) -> str:
    """The text as a YAML string: a commit that looks like a number needs quotes."""
    return text if isinstance(YAML(typ="safe").load(text), str) else f'"{text}"'


def _set(text: str, path: list[str], value: str) -> str:
    """The YAML text with the value at `path` replaced, or added if the key is missing."""
    mapping = YAML().compose(text)
    for key in path[:-1]:
        mapping = next(node for name, node in mapping.value if name.value == key)
    assert isinstance(mapping, MappingNode)
    for name, node in mapping.value:
        if name.value == path[-1]:
            start, end = node.start_mark.index, node.end_mark.index
            if start == end:  # `key:` without a value; the parser reports a position after any comment
                start = end = text.index(":", name.end_mark.index) + 1
                value = f" {value}"
            return text[:start] + value + text[end:]
    if mapping.flow_style:
        last = mapping.value[-1][1].end_mark.index
        return f"{text[:last]}, {path[-1]}: {value}{text[last:]}"
    first = mapping.value[0][0].start_mark
    return f"{text[: first.index]}{path[-1]}: {value}\n{' ' * first.column}{text[first.index :]}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="NAME", help="configs/models/NAME.yaml")
    parser.add_argument(
        "--task", metavar="NAME", help="configs/tasks/NAME.yaml; without either option, those of params.yaml"
    )


def main(arguments: argparse.Namespace) -> None:
    model, task = arguments.model, arguments.task
    if model is None and task is None:
        params = load_params()
        model, task = params.model.name, params.task.name
    if model is not None:
        print(pin_model(model))
    if task is not None:
        print(pin_task(task))
