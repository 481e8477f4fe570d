"""Keeps the drawn pictures in a temporary file, because a source is read in another order than the splits have."""

from pathlib import Path

from vlm.sources import pictures
from vlm.sources.pool import Pool
from vlm.sources.splits import Picture


class Store:
    """`with Store(path) as store:` holds picture files as the splits will store them; `path` is a temporary file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[tuple[str, int], tuple[int, int]] = {}  # (pool, index) -> (start, length)

    def __enter__(self) -> "Store":
        self._file = self._path.open("w+b")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, name: str, pool: Pool, chosen: list[Picture]) -> None:
        """Copies the chosen pictures of the pool `name`; those that are not upright RGB JPEG or PNG become PNG."""
        wanted = {picture.index: picture for picture in chosen}
        for shard, of_shard in enumerate(pool.shards):
            if wanted.keys().isdisjoint(of_shard):
                continue
            for index, read in zip(of_shard, pool.readers(shard), strict=True):
                if index not in wanted:
                    continue
                data = read()
                if not wanted[index].inspection.store_as_is:
                    data = pictures.upright_png(data)
                self._places[name, index] = self._file.tell(), len(data)
                self._file.write(data)

    def read(self, name: str, picture: Picture) -> bytes:
        """The file of a picture that was added from the pool `name`."""
        start, length = self._places[name, picture.index]
        self._file.seek(start)
        return self._file.read(length)
