"""Pinned inputs: compares folders with their pinned hashes, and resolves revisions to commits."""

import hashlib
import os
import re
import sys
from functools import cache
from pathlib import Path

from vlm.config import hub
from vlm.config.errors import InputError
from vlm.config.models import ModelConfig
from vlm.config.params import Params
from vlm.config.task import Task

_HASH = re.compile(r"sha256:[0-9a-f]{64}")


def resolved(params: Params) -> Params:
    """The parameters with the model's revision resolved to a commit, as jobs need them. Raises InputError."""
    return params.model_copy(update={"model": resolved_model(params.model)})


def resolved_model(model: ModelConfig) -> ModelConfig:
    """The model with its revision resolved to a commit; warns once if it is not pinned. Raises InputError.

    A model that is a folder is returned unchanged; `verify_model` compares it with its pin.
    """
    file = file_of("models", model.name)
    if model.folder is not None:
        return model
    if _HASH.fullmatch(model.revision or ""):
        raise InputError(
            f"{file}: id: {model.id!r} is not a folder here, but revision is the hash of a folder; "
            "`git checkout` or `dvc pull` restores it"
        )
    if model.id.startswith((".", "/", "~")) or model.id.split("/")[0] == "models":
        raise InputError(f"{file}: id: there is no folder {model.id!r}; put the model there, or give a Hub id")
    found = hub.commit(model.id, model.revision, "model", f"{file}: id")
    if found.since is not None:
        _warn_moving(file, "revision", model.revision, found)
    return model.model_copy(update={"revision": found.sha})


def verify_model(model: ModelConfig) -> None:
    """Compares a model's folder with its pin; warns once if there is none. Raises InputError if it has changed."""
    if model.folder is not None:
        _verify_folder(model.folder, model.revision, file_of("models", model.name), "revision")


def verify_source(task: Task) -> str | None:
    """The commit of a task's data set on the Hub; None for badges, and for a folder, which is compared with its pin.

    Warns once if the source is not pinned. Raises InputError if a folder has changed.
    """
    file, source = file_of("tasks", task.name), task.source
    if source.folder is not None:
        _verify_folder(source.folder_path, source.sha256, file, "source.sha256")
    if source.hub is None:
        return None
    found = hub.commit(source.hub, source.revision, "dataset", f"{file}: source.hub")
    if found.since is not None:
        _warn_moving(file, "source.revision", source.revision, found)
    return found.sha


def folder_hash(folder: Path) -> str:
    """`sha256:` and a hash of the names and contents of a folder's visible files, the same on every machine.

    Raises InputError if a file cannot be read.
    """
    digest = hashlib.sha256()
    for name in visible_files(folder):
        try:
            with (folder / name).open("rb") as file:
                content = hashlib.file_digest(file, "sha256").digest()
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise InputError(f"{folder / name}: cannot be read: {reason}; correct or remove it") from None
        digest.update(f"{name}\0".encode() + content)
    return f"sha256:{digest.hexdigest()}"


def visible_files(folder: Path) -> list[str]:
    """The sorted paths, relative and with `/`, of a folder's files and those of its subfolders, without hidden ones.

    Raises InputError for a name that is not UTF-8, which is no text and cannot be written to any of our files.
    """
    names = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names += [Path(parent, name).relative_to(folder).as_posix() for name in files if not name.startswith(".")]
    for name in names:
        if any("\ud800" <= character <= "\udfff" for character in name):  # stands for a byte that is not UTF-8
            raise InputError(f"{str(folder / name)!r}: the name is not UTF-8; rename it")
    return sorted(names)


def file_of(kind: str, name: str) -> Path:
    return Path("configs", kind, f"{name}.yaml")


def _verify_folder(folder: Path, pinned: str | None, file: Path, key: str) -> None:
    if pinned is None:
        _warn_unpinned(file, key)
        return
    found = folder_hash(folder)
    if found != pinned:
        raise InputError(
            f"{file}: {key}: {folder} has changed: expected {pinned}, found {found}; "
            f"run `{command_of(file)}` if the change is intended"
        )


@cache
def _warn_moving(file: Path, key: str, revision: str | None, found: hub.Commit) -> None:
    print(
        f"warning: {file}: {key}: not pinned; all stages on this machine use {found.sha}, which was "
        f"{revision or 'the newest commit'} on {found.since}; `{command_of(file)}` pins today's commit",
        file=sys.stderr,
    )


@cache
def _warn_unpinned(file: Path, key: str) -> None:
    print(
        f"warning: {file}: {key}: not pinned, so results may change with its contents; `{command_of(file)}` pins it",
        file=sys.stderr,
    )


def command_of(file: Path) -> str:
    """The command that pins what the file names."""
    return f"python -m vlm pin --{file.parent.name.removesuffix('s')} {file.stem}"
