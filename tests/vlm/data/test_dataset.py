import io

import pytest
from PIL import Image

from vlm.config.errors import InputError
from vlm.data import dataset
from vlm.data.dataset import Row


def png(colour: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 6), (colour % 256, 1, 2)).save(buffer, "PNG")
    return buffer.getvalue()


def rows(count: int) -> list[Row]:
    return [Row(f"train-{i:06d}", png(i), "odd" if i % 2 else "even") for i in range(count)]


@pytest.fixture
def split(tmp_path):
    path = tmp_path / "train.parquet"
    dataset.write(path, rows(600))
    return path


def test_equal_rows_give_equal_files(split, tmp_path):
    dataset.write(tmp_path / "again.parquet", rows(600))
    assert split.read_bytes() == (tmp_path / "again.parquet").read_bytes()


def test_datasets_reads_the_pictures(split, tmp_path):
    from datasets import Dataset

    data = Dataset.from_parquet(str(split), cache_dir=str(tmp_path / "cache"))
    assert data.column_names == ["id", "image", "label"]
    row = data[259]
    assert (row["id"], row["label"], row["image"].mode, row["image"].size) == ("train-000259", "odd", "RGB", (4, 6))


def test_count_ids_and_labels(split):
    ids, labels = dataset.ids_and_labels(split)
    assert dataset.count(split) == len(ids) == 600
    assert (ids[599], labels[599]) == ("train-000599", "odd")


def test_rows_are_read_by_number_in_any_order(split):
    reader = dataset.Reader(split)
    numbers = [599, 0, 15, 16, 255, 256, 0]
    found = reader.rows(numbers)
    assert [row.id for row in found] == [f"train-{i:06d}" for i in numbers]
    assert found[2] == rows(600)[15]


def test_sizes_are_read_without_decoding(split, monkeypatch):
    def refuse(self):
        raise AssertionError("decoded")

    monkeypatch.setattr(Image.Image, "load", refuse)
    assert list(dataset.image_sizes(split)) == [(4, 6)] * 600


def test_writing_puts_rows_on_disk_as_they_come(tmp_path):
    path, picture = tmp_path / "train.parquet", bytes(10_000)

    def stream():
        for i in range(1000):
            if i == 999:
                assert path.stat().st_size > 900 * len(picture)
            yield Row(str(i), picture, "label")

    dataset.write(path, stream())


def test_a_missing_or_broken_split_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"test\.parquet: no such file; `dvc repro prepare`"):
        dataset.count(tmp_path / "test.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(InputError, match=r"broken\.parquet: is not a parquet file"):
        dataset.ids_and_labels(tmp_path / "broken.parquet")
