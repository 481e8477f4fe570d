"""Small splits and predictions for the tests of the tables, the sheets and Predictions."""

import pyarrow as pa
import pyarrow.parquet as pq

LABELS = ["Acura", "BMW", "Ford", "smart"]
SAMPLES = 120


def write_split(path, rows):
    """A split of (id, picture file, label)."""
    table = [{"id": id_, "image": {"bytes": data, "path": None}, "label": label} for id_, data, label in rows]
    schema = pa.schema(
        {"id": pa.string(), "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "label": pa.string()}
    )
    pq.write_table(pa.Table.from_pylist(table, schema), path, row_group_size=50)
    return path


def predictions_for(data, answer):
    """Predictions for a split, without probabilities; `answer(index, label)` gives a label or None."""
    table = pq.read_table(data, columns=["id", "label"]).to_pandas()
    table["predicted"] = [answer(i, label) for i, label in enumerate(table["label"])]
    table["text"] = [
        predicted if isinstance(predicted, str) else "I see\n a car, worth $1 or $2" for predicted in table["predicted"]
    ]
    return table.assign(probabilities=None)
