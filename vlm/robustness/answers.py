"""predictions/robustness/test.parquet: the answers of both models to every chosen sample under every corruption.

Columns: model ("base" or "fine-tuned"), corruption ("clean" for the original picture), severity (1 to 5; 0 for the
original), id, label (the truth) and predicted (the most probable label). No rows if robustness is switched off.
"""

from collections.abc import Iterable
from pathlib import Path

CLEAN = ("clean", 0)  # corruption and severity of the original pictures


def write(path: Path, rows: Iterable[tuple[str, str, int, str, str, str]]) -> None:
    """Writes the rows, tuples of the columns above, all of them or nothing. Equal rows give equal files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = pa.string()
    columns = {"model": text, "corruption": text, "severity": pa.int8(), "id": text, "label": text, "predicted": text}
    table = pa.Table.from_pylist([dict(zip(columns, row, strict=True)) for row in rows], pa.schema(columns))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(table, temporary)
    temporary.replace(path)
