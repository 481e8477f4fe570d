import io

import pyarrow.parquet as pq
import pytest
from PIL import Image

from vlm.config.errors import InputError
from vlm.data import dataset
from vlm.data.dataset import Row


def png(colour: int, size: tuple[int, int] = (4, 6)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (colour % 256, 1, 2)).save(buffer, "PNG")
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
    assert data.column_names == ["id", "image", "label", "width", "height"]
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


def test_sizes_are_known_without_reading_pictures(tmp_path, monkeypatch):
    path, sizes = tmp_path / "train.parquet", [(4 + i % 50, 6) for i in range(600)]
    dataset.write(path, (Row(str(i), png(i, size), "even") for i, size in enumerate(sizes)))

    def refuse(*_):
        raise AssertionError("opened")

    monkeypatch.setattr(Image, "open", refuse)
    assert dataset.image_sizes(path) == sizes


def test_a_split_of_an_earlier_version_has_no_sizes_but_can_be_read(split, tmp_path):
    earlier = tmp_path / "earlier.parquet"
    pq.write_table(pq.read_table(split, columns=["id", "image", "label"]), earlier)
    with pytest.raises(
        InputError, match=r"earlier\.parquet: has no columns `width` and `height`; `dvc repro -f prepare`"
    ):
        dataset.image_sizes(earlier)
    assert dataset.Reader(earlier).rows([0, 599]) == dataset.Reader(split).rows([0, 599])


def test_writing_puts_rows_on_disk_as_they_come(tmp_path):
    path, picture = tmp_path / "train.parquet", png(0) + bytes(10_000)

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
