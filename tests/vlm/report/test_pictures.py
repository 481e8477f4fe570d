import io

import numpy as np
import pytest
from PIL import Image

from vlm.data import dataset
from vlm.report import pictures


@pytest.fixture
def split(tmp_path, monkeypatch):
    """A test split with a small picture, a large one with much detail, and a wide PNG."""
    monkeypatch.chdir(tmp_path)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (900, 1200, 3), dtype=np.uint8))
    files = []
    for image, kind in (
        (Image.new("RGB", (60, 40), "red"), "JPEG"),
        (noise, "JPEG"),
        (Image.new("RGB", (900, 2)), "PNG"),
    ):
        file = io.BytesIO()
        image.save(file, kind)
        files.append(file.getvalue())
    (tmp_path / "data").mkdir()
    dataset.write(tmp_path / "data/test.parquet", [dataset.Row(f"{i}", data, "a") for i, data in enumerate(files)])
    return files


def sizes(folder, kind):
    return {path.name: Image.open(path).size for path in sorted((folder / kind).iterdir())}


def test_small_files_are_copied_and_large_ones_scaled(split, tmp_path):
    events = []
    names = pictures.write(tmp_path / "out", [("test", row) for row in (2, 0, 1, 0)], events.append)
    assert names == {("test", 0): "test-000000.jpg", ("test", 1): "test-000001.webp", ("test", 2): "test-000002.png"}
    assert (tmp_path / "out/pictures/test-000000.jpg").read_bytes() == split[0]
    assert sizes(tmp_path / "out", "pictures")["test-000001.webp"] == (768, 576)
    assert sizes(tmp_path / "out", "thumbnails") == {
        "test-000000.webp": (60, 40), "test-000001.webp": (200, 150), "test-000002.webp": (200, 1)
    }  # fmt: skip
    assert (events[-1].done, events[-1].total) == (3, 3)


def test_a_phones_picture_with_further_ones_behind_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = io.BytesIO()
    Image.new("RGB", (60, 40), "red").save(file, "MPO", save_all=True, append_images=[Image.new("RGB", (60, 40))])
    assert Image.open(file).format == "MPO"
    (tmp_path / "data").mkdir()
    dataset.write(tmp_path / "data/test.parquet", [dataset.Row("0", file.getvalue(), "a")])
    names = pictures.write(tmp_path / "out", [("test", 0)], lambda event: None)
    assert names == {("test", 0): "test-000000.jpg"}
    assert (tmp_path / "out/pictures/test-000000.jpg").read_bytes() == file.getvalue()
    assert sizes(tmp_path / "out", "thumbnails") == {"test-000000.webp": (60, 40)}


def test_equal_pictures_give_equal_files_of_limited_size(split, tmp_path):
    for folder in ("a", "b"):
        pictures.write(tmp_path / folder, [("test", 1)], lambda event: None)
    thumbnails = [(tmp_path / folder / "thumbnails/test-000001.webp").read_bytes() for folder in ("a", "b")]
    assert thumbnails[0] == thumbnails[1]
    # Noise is the worst case: no photo has so much detail.
    assert len(thumbnails[0]) < 16_000
