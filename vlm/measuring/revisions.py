"""Files as they are at another revision of this repository: a commit, a branch, a tag or an experiment's name."""

from typing import Any, BinaryIO

from ruamel.yaml import YAML, YAMLError

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

    def has(self, path: str) -> bool:
        """Whether there is a file `path`, relative to the repository."""
        return self._files.exists(path)

    def open(self, path: str) -> BinaryIO:
        """Opens the file `path`, relative to the repository. Raises InputError if it cannot be had."""
        from dvc_data.index import DataIndexDirError

        try:
            return self._files.open(path, "rb")
        except FileNotFoundError:
            known = self.has(path)
        except DataIndexDirError:  # DVC tracks the folder and has no list of its files
            known = True
        raise InputError(
            f"{path}: is not in DVC's cache as of {self.name}; `dvc pull` may fetch it"
            if known
            else f"{path}: there is no such file in {self.name}"
        )

    def read_yaml(self, path: str) -> Any:
        """Reads a YAML file, as vlm.config.yaml_files.read_yaml does. Raises InputError."""
        with self.open(path) as file:
            text = file.read().decode()
        try:
            return YAML(typ="safe", pure=True).load(text)
        except YAMLError:
            raise InputError(f"{path}: is not YAML in {self.name}") from None

    def read_mapping(self, path: str) -> dict[str, Any]:
        """Reads a YAML file whose top level is a mapping. Raises InputError."""
        values = self.read_yaml(path)
        if not isinstance(values, dict):
            raise InputError(f"{path}: should be a mapping of keys to values in {self.name}")
        return values
