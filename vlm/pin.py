"""Pins inputs: `python -m vlm.pin` writes what a model and a data set are now into their files, checked on each load.

On the Hub that is a commit, of a folder a hash of its files. Badges are rendered from the seed and need none.
"""

import argparse
import hashlib
import os
import re
import sys
from functools import cache
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode

from vlm import hub
from vlm.errors import InputError, reported
from vlm.params import ModelConfig, Params, load_model, load_params, load_task
from vlm.task import Task

_HASH = re.compile(r"sha256:[0-9a-f]{64}")


def resolved(params: Params) -> Params:
    """The parameters with the model's commit for its revision: what a job is made of. Raises InputError."""
    return params.model_copy(update={"model": resolved_model(params.model)})


def resolved_model(model: ModelConfig) -> ModelConfig:
    """The model with the commit that its revision stands for; warns, once, where it is not pinned. Raises InputError.

    A folder is as it is; `verify_model` compares it with its pin.
    """
    file = _file("models", model.name)
    if model.folder is not None:
        return model
    if _HASH.fullmatch(model.revision or ""):
        raise InputError(
            f"{file}: id: {model.id!r} is no folder here, and revision is a folder's hash; "
            "`git checkout` or `dvc pull` brings the folder back"
        )
    found = hub.commit(model.id, model.revision, "model", f"{file}: id")
    if found.since is not None:
        _warn_moving(file, "revision", model.revision, found)
    return model.model_copy(update={"revision": found.sha})


def verify_model(model: ModelConfig) -> None:
    """Compares a model's folder with its pin; warns, once, where there is none. Raises InputError for a change."""
    if model.folder is not None:
        _verify_folder(model.folder, model.revision, _file("models", model.name), "revision")


def verify_source(task: Task) -> str | None:
    """The commit of a task's data set; None for a folder, which is compared with its pin.

    Warns, once, where there is no pin. Raises InputError for a folder that has changed.
    """
    file, source = _file("tasks", task.name), task.source
    if source.folder is not None:
        _verify_folder(Path(source.folder), source.sha256, file, "source.sha256")
    if source.hub is None:
        return None
    found = hub.commit(source.hub, source.revision, "dataset", f"{file}: source.hub")
    if found.since is not None:
        _warn_moving(file, "source.revision", source.revision, found)
    return found.sha


def folder_hash(folder: Path) -> str:
    """`sha256:` and the hash of the names and contents of a folder's visible files, the same on every machine."""
    digest = hashlib.sha256()
    for name in visible_files(folder):
        with (folder / name).open("rb") as file:
            digest.update(f"{name}\0".encode() + hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"


def visible_files(folder: Path) -> list[str]:
    """The files in a folder and its subfolders, sorted, relative to it with `/`; none that is hidden (`.name`)."""
    names = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names += [Path(parent, name).relative_to(folder).as_posix() for name in files if not name.startswith(".")]
    return sorted(names)


def pin_model(name: str) -> str:
    """Pins a model in its file; a commit there stays. Returns a line that says so. Raises InputError."""
    model, file = load_model(name), _file("models", name)
    if model.folder is not None:
        found = folder_hash(model.folder)
    else:
        found = hub.resolve(model.id, model.revision, "model", f"{file}: id")
    return _write(file, ["revision"], found)


def pin_task(name: str) -> str:
    """Pins a task's data in its file; a commit there stays. Returns a line that says so. Raises InputError."""
    source, file = load_task(name).source, _file("tasks", name)
    if source.badges is not None:
        return f"{file}: badges are rendered from the seed; there is nothing to pin"
    if source.folder is not None:
        if not Path(source.folder).is_dir():
            raise InputError(f"{file}: source.folder: {source.folder!r} is no folder here")
        return _write(file, ["source", "sha256"], folder_hash(Path(source.folder)))
    found = hub.resolve(source.hub, source.revision, "dataset", f"{file}: source.hub")
    return _write(file, ["source", "revision"], found)


def _file(kind: str, name: str) -> Path:
    return Path("configs", kind, f"{name}.yaml")


def _verify_folder(folder: Path, pinned: str | None, file: Path, key: str) -> None:
    if pinned is None:
        _warn_unpinned(file, key)
        return
    found = folder_hash(folder)
    if found != pinned:
        raise InputError(
            f"{file}: {key}: {folder} has changed: expected {pinned}, found {found}; "
            f"run `{_command(file)}` if the change is meant"
        )


@cache
def _warn_moving(file: Path, key: str, revision: str | None, found: hub.Commit) -> None:
    print(
        f"warning: {file}: {key}: not pinned; all stages here use {found.sha}, which {revision or 'its newest commit'} "
        f"was on {found.since}; `{_command(file)}` pins the one of today",
        file=sys.stderr,
    )


@cache
def _warn_unpinned(file: Path, key: str) -> None:
    print(
        f"warning: {file}: {key}: not pinned, so results may change with what it names; `{_command(file)}` pins it",
        file=sys.stderr,
    )


def _command(file: Path) -> str:
    return f"python -m vlm.pin --{file.parent.name.removesuffix('s')} {file.stem}"


def _write(file: Path, path: list[str], value: str) -> str:
    """Sets a value in a YAML file, which stays as it is but for that value."""
    text = file.read_bytes().decode()  # read_text would turn \r\n into \n
    changed = _set(text, path, value)
    if changed == text:
        return f"{file}: {'.'.join(path)}: still {value}; null there and pinning again takes the newest"
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_bytes(changed.encode())
    temporary.replace(file)
    return f"{file}: {'.'.join(path)}: {value}"


def _set(text: str, path: list[str], value: str) -> str:
    """The YAML text with the value at `path` exchanged, or added to its mapping."""
    if not isinstance(YAML(typ="safe").load(value), str):  # a commit of digits only, say
        value = f'"{value}"'
    mapping = YAML().compose(text)
    for key in path[:-1]:
        mapping = next(node for name, node in mapping.value if name.value == key)
    assert isinstance(mapping, MappingNode)
    for name, node in mapping.value:
        if name.value == path[-1]:
            start, end = node.start_mark.index, node.end_mark.index
            if start == end:  # `key:` without a value, which the parser places behind what follows
                start = end = text.index(":", name.end_mark.index) + 1
                value = f" {value}"
            return text[:start] + value + text[end:]
    if mapping.flow_style:
        last = mapping.value[-1][1].end_mark.index
        return f"{text[:last]}, {path[-1]}: {value}{text[last:]}"
    first = mapping.value[0][0].start_mark
    return f"{text[: first.index]}{path[-1]}: {value}\n{' ' * first.column}{text[first.index :]}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m vlm.pin", description=__doc__.splitlines()[0])
    parser.add_argument("--model", metavar="NAME", help="configs/models/NAME.yaml")
    parser.add_argument("--task", metavar="NAME", help="configs/tasks/NAME.yaml")
    names = parser.parse_args()
    model, task = names.model, names.task
    if model is None and task is None:
        params = load_params()
        model, task = params.model.name, params.task.name
    if model is not None:
        print(pin_model(model))
    if task is not None:
        print(pin_task(task))


if __name__ == "__main__":
    with reported():
        main()
