"""predictions/<name>.parquet: a model's answers to a split, one row per sample, in the split's order.

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
    path: Path,
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
    pq.write_table(pa.table(columns), path)


def read(name: str) -> "pd.DataFrame":
    """predictions/<name>.parquet. Raises InputError if there is no such file."""
    import pandas as pd

    path = Path("predictions", f"{name}.parquet")
    if not path.exists():
        raise InputError(f"{path}: no such file; `dvc repro {stage(name)}` writes it, `dvc pull` fetches it")
    return pd.read_parquet(path)


def stage(name: str) -> str:
    """The stage of dvc.yaml that writes predictions/<name>.parquet."""
    if name == "majority" or name.startswith("probe_"):
        return "probe"
    if name == "edge_sweep":
        return "edge_eval"
    return name.removesuffix("_raw").removesuffix("_validation")
