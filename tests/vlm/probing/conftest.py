import pytest

from vlm.data import dataset
from vlm.probing import FeatureExtraction


@pytest.fixture
def job(task, tiny, image_params, make_split, tmp_path):
    """The features of 40, 10 and 12 badges."""
    train, test = make_split("train", 40), make_split("test", 12)
    validation = tmp_path / "validation.parquet"
    rows = [dataset.Row(f"validation-{row.id}", row.image, row.label) for row in dataset.Reader(test).rows(range(10))]
    dataset.write(validation, rows)
    return FeatureExtraction(task, tiny, image_params, train, str(validation), test)
