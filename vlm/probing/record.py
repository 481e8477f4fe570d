"""The features of finished batches, on disk, so that a resumed run does not compute them again."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


class Record:
    """One .npz file for each finished batch of a split: `rows`, the numbers of its rows, and their `features`.

    Given several folders, one for each shard, it merges them for reading.
    """

    def __init__(self, *folders: Path) -> None:
        self._folders = folders
        folders[0].mkdir(parents=True, exist_ok=True)

    def finished(self, batch: Sequence[int]) -> bool:
        return self._file(batch).exists()

    def append(self, batch: Sequence[int], features: "np.ndarray") -> None:
        """Records the features of the rows in `batch`, (rows, dimensions)."""
        import numpy as np

        temporary = self._file(batch).with_suffix(".part")
        with temporary.open("wb") as file:
            np.savez(file, rows=np.array(batch), features=features)
        temporary.replace(self._file(batch))

    def batches(self) -> "Iterator[tuple[np.ndarray, np.ndarray]]":
        """Yields the rows of every batch and their features."""
        import numpy as np

        for file in sorted(file for folder in self._folders for file in folder.glob("*.npz")):
            with np.load(file) as found:
                yield found["rows"], found["features"]

    def _file(self, batch: Sequence[int]) -> Path:
        return self._folders[0] / f"{batch[0]:08}.npz"
