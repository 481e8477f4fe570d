"""predictions/features/features.parquet: the pooled vision features of all pictures of a task.

Columns: id, split ("train", "validation" or "test") and features (a list of float32, of the same length in all rows).
The rows are in the order of the splits. Without rows, the model has no vision tower that could be used.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def write(path: Path, splits: "Mapping[str, tuple[list[str], np.ndarray]]") -> None:
    """Writes the ids and features, (samples, dimensions), of each split."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema({"id": pa.string(), "split": pa.string(), "features": pa.list_(pa.float32())})
    with pq.ParquetWriter(path, schema) as writer:
        for split, (ids, matrix) in splits.items():
            offsets = pa.array(range(0, matrix.size + 1, matrix.shape[1]), pa.int32())
            values = pa.ListArray.from_arrays(offsets, pa.array(matrix.ravel(), pa.float32()))
            writer.write_table(pa.table([ids, [split] * len(ids), values], schema=schema))


def read(path: Path) -> "dict[str, np.ndarray]":
    """The features of each split, (samples, dimensions), in the split's order; {} for a file without rows."""
    import numpy as np
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    splits = np.array(table.column("split").to_pylist())
    if not len(splits):
        return {}
    matrix = table.column("features").combine_chunks().flatten().to_numpy().reshape(len(splits), -1)
    return {split: matrix[splits == split] for split in ("train", "validation", "test")}
