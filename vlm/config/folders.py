"""Finds the folders that configuration files name."""

from pathlib import Path


def in_repository(folder: str) -> Path:
    """The path of `folder`; if it does not exist and this is DVC's copy of a repository, its path from the original.

    `dvc exp run --temp` and `--queue` run in a copy under REPOSITORY/.dvc/tmp/exps that contains only the files in git:
    folders that git ignores are missing there, and `../flowers` is a different path.
    """
    path = Path(folder)
    if path.exists():
        return path
    for parent in Path.cwd().parents:
        if parent.parts[-3:] == (".dvc", "tmp", "exps") and (parent.parents[2] / folder).exists():
            return (parent.parents[2] / folder).resolve()
    return path
