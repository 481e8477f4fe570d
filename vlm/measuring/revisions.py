"""Files as they are at another revision of this repository: a commit, a branch, a tag or an experiment's name."""

from typing import Any, BinaryIO

from ruamel.yaml import YAML

from vlm.config.errors import InputError


class Revision:
    """Reads the files of a revision: those in git, and those that DVC keeps in its cache or remote.

    Raises InputError if there is no such revision.
    """

    def __init__(self, name: str) -> None:
        # Importing DVC takes a second, and most callers only look at the working tree.
        from dvc.api import DVCFileSystem
        from dvc.exceptions import DvcException
        from dvc.scm import RevError

        self.name = name
        try:
            self._files = DVCFileSystem(rev=name)
            self._files.repo  # noqa: B018  (looks for the revision)
        except RevError:
            raise InputError(f"{name}: git has no such commit, branch, tag or experiment") from None
        except DvcException as error:
            raise InputError(f"{name}: {error}") from None

    def open(self, path: str) -> BinaryIO:
        """Opens the file `path`, relative to the repository. Raises InputError if it cannot be had."""
        if not self._files.exists(path):
            raise InputError(f"{path}: there is no such file in {self.name}")
        try:
            return self._files.open(path, "rb")
        except FileNotFoundError:
            raise InputError(f"{path}: is not in DVC's cache as of {self.name}; `dvc pull` may fetch it") from None

    def read_yaml(self, path: str) -> Any:
        """Reads a YAML file, as vlm.config.yaml_files.read_yaml does."""
        with self.open(path) as file:
            return YAML(typ="safe", pure=True).load(file.read().decode())
