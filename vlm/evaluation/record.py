"""Records an evaluation's finished batches on disk, so that a resumed run does not repeat them."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Answers:
    """The model's answers to the samples of a batch; `probabilities` is (samples, labels)."""

    texts: list[str]
    probabilities: list[list[float]] | None = None


class Record:
    """One line of JSON for each finished batch. An incomplete last line, left by a crash, is removed.

    Given several files, one for each shard, it merges them for reading.
    """

    def __init__(self, *paths: Path) -> None:
        self._path = paths[0]
        self.rows: dict[int, tuple[str, list[float] | None]] = {}  # by row number: text, probabilities
        self.image_tokens = 0
        self.split_batches = 0
        for path in paths:
            if path.exists():
                complete, newline, torn = path.read_text(encoding="utf-8").rpartition("\n")
                if torn:
                    path.write_text(complete + newline, encoding="utf-8")
                for line in complete.splitlines():
                    self._take(json.loads(line))

    @property
    def samples(self) -> int:
        return len(self.rows)

    def texts(self) -> list[str]:
        """The answers, in the order of the rows."""
        return [self.rows[row][0] for row in sorted(self.rows)]

    def probabilities(self) -> list[list[float] | None]:
        """The answers' label probabilities, in the order of the rows."""
        return [self.rows[row][1] for row in sorted(self.rows)]

    def append(self, rows: Sequence[int], parts: Sequence[Answers], image_tokens: int) -> None:
        """Records a finished batch, which went through the model in `parts`."""
        probabilities = [p for part in parts for p in part.probabilities or [None] * len(part.texts)]
        entry = {
            "rows": list(rows),
            "texts": [text for part in parts for text in part.texts],
            "probabilities": probabilities,
            "image_tokens": image_tokens,
            "parts": len(parts),
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._take(entry)

    def _take(self, entry: dict) -> None:
        answers = zip(entry["texts"], entry["probabilities"], strict=True)
        self.rows.update(zip(entry["rows"], answers, strict=True))
        self.image_tokens += entry["image_tokens"]
        self.split_batches += entry["parts"] > 1
