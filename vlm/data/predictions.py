"""predictions/<name>/<split>.parquet: a model's answers to a split, one row per sample, in the split's order.

Columns: id, label (the truth), text (what the model wrote), predicted (a label, or null if the text is not a label),
probabilities (a list over the task's labels, or null if the decoding gives none) and plain_probabilities (those of the
model if `probabilities`, `predicted` and `text` are with the label prior corrected, else null). The file holds no
times, so equal results are equal files.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vlm.config.errors import InputError
from vlm.config.task import Task
from vlm.data import dataset

if TYPE_CHECKING:
    import pandas as pd


def write(
    file: Path,
    task: Task,
    data: str,
    texts: Sequence[str],
    probabilities: Sequence[Sequence[float] | None],
    rows: Sequence[int] | None = None,
    plain_probabilities: Sequence[Sequence[float]] | None = None,
) -> None:
    """Writes the answers to samples of the split `data`: those numbered `rows`, or all. All are in that order.

    `plain_probabilities` are the probabilities before the label prior was corrected; None if none was.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids, labels = dataset.ids_and_labels(data)
    if rows is not None:
        ids, labels = [ids[row] for row in rows], [labels[row] for row in rows]
    columns = {
        "id": pa.array(ids, pa.string()),
        "label": pa.array(labels, pa.string()),
        "text": pa.array(texts, pa.string()),
        "predicted": pa.array([task.parse(text) for text in texts], pa.string()),
        "probabilities": pa.array(probabilities, pa.list_(pa.float64())),
        "plain_probabilities": pa.array(plain_probabilities or [None] * len(texts), pa.list_(pa.float64())),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file)


def path(name: str, split: str = "test") -> Path:
    """The file with the answers called `name`, such as final_eval_raw, to a split."""
    return Path("predictions", name, f"{split}.parquet")


def notes_path(name: str) -> Path:
    """The file with what the evaluation called `name` reports besides its answers to test."""
    return path(name).with_suffix(".json")


def read(name: str, split: str = "test") -> "pd.DataFrame":
    """The answers in the working tree. Raises InputError if there are none."""
    import pandas as pd

    file = path(name, split)
    if not file.exists():
        raise InputError(f"{file}: no such file; `dvc repro {stage(name)}` writes it, `dvc pull` fetches it")
    return pd.read_parquet(file)


def stage(name: str) -> str:
    """The stage of dvc.yaml that writes predictions/<name>/."""
    if name in ("majority", "features") or name.startswith("probe_"):
        return "probe"
    return name.removesuffix("_raw")
