import csv
import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlm.config import pins
from vlm.config.errors import InputError
from vlm.config.events import Log, Progress
from vlm.config.params import PrepareParams
from vlm.config.task import Task
from vlm.data import dataset
from vlm.sources import preparation

SMALL = PrepareParams(train=12, validation=4, test=8)


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def task(source: dict, labels: tuple[str, ...] = ("cat", "dog"), **more) -> Task:
    return Task(name="pets", source=source, labels=labels, prompt={"user": "What is it?"}, **more)


BADGES = task({"badges": {"severity": 0.5, "icons": {"cat": "audi", "dog": "bmw"}}})
FOLDER = task({"folder": "pets"})


def picture(path: str, seed: object, size: tuple[int, int] = (12, 8)) -> Path:
    pixels = np.random.default_rng(list(str(seed).encode())).integers(0, 256, (*size, 3), np.uint8)
    file = Path("pets", path)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)
    return file


def pets(count: int = 20) -> None:
    for i in range(count):
        picture(f"cat/{i:02d}.png", f"cat {i}")
        picture(f"dog/{i:02d}.jpg", f"dog {i}")


def prepare(of: Task, rows: PrepareParams = SMALL, seed: int = 3, into: str = "data"):
    return preparation.prepare(of, rows, seed, Path(into), lambda event: None)


def ids(split: str, within: str = "data") -> list[str]:
    return dataset.ids_and_labels(Path(within, f"{split}.parquet"))[0]


# What any source gives


@pytest.mark.parametrize("of", [BADGES, FOLDER], ids=["badges", "folder"])
def test_equal_inputs_give_equal_files(of):
    pets()
    prepare(of, into="one")
    prepare(of, into="two")
    for split in preparation.SPLITS:
        assert Path("one", f"{split}.parquet").read_bytes() == Path("two", f"{split}.parquet").read_bytes()


@pytest.mark.parametrize("of", [BADGES, FOLDER], ids=["badges", "folder"])
def test_splits_have_the_rows_asked_for_and_share_none(of):
    pets()
    report = prepare(of)
    found = {split: ids(split) for split in preparation.SPLITS}
    assert {split: len(rows) for split, rows in found.items()} == {"train": 12, "validation": 4, "test": 8}
    assert len({id_ for rows in found.values() for id_ in rows}) == 24
    for split in preparation.SPLITS:
        labels = dataset.ids_and_labels(f"data/{split}.parquet")[1]
        assert report.rows[split] == {label: labels.count(label) for label in ("cat", "dog")}


@pytest.mark.parametrize("of", [BADGES, FOLDER], ids=["badges", "folder"])
def test_asking_for_other_training_rows_moves_nothing_in_test_or_validation(of):
    pets()
    prepare(of, into="few")
    prepare(of, PrepareParams(train=20, validation=4, test=8), into="many")
    assert ids("test", "few") == ids("test", "many")
    assert ids("validation", "few") == ids("validation", "many")
    assert set(ids("train", "few")) < set(ids("train", "many"))


@pytest.mark.parametrize("of", [BADGES, FOLDER], ids=["badges", "folder"])
def test_another_seed_gives_another_test_set(of):
    pets()
    prepare(of, into="one")
    prepare(of, seed=4, into="two")
    assert Path("one/test.parquet").read_bytes() != Path("two/test.parquet").read_bytes()


def test_progress_is_reported_split_by_split():
    events = []
    preparation.prepare(BADGES, SMALL, 3, Path("data"), events.append)
    last = {event.unit: event for event in events if isinstance(event, Progress)}
    assert list(last.values()) == [
        Progress(12, 12, "train pictures"),
        Progress(4, 4, "validation pictures"),
        Progress(8, 8, "test pictures"),
    ]


def test_an_error_leaves_the_files_as_they_were_and_nothing_half_written():
    prepare(BADGES)
    before = {file.name: file.read_bytes() for file in Path("data").iterdir()}
    pets(4)
    with pytest.raises(InputError):
        prepare(FOLDER)
    assert {file.name: file.read_bytes() for file in Path("data").iterdir()} == before


# Badges


def test_badges_draw_from_the_tasks_labels():
    prepare(BADGES)
    assert set(dataset.ids_and_labels("data/train.parquet")[1]) == {"cat", "dog"}
    assert ids("train")[:2] == ["train-000000", "train-000001"]


@pytest.mark.parametrize("split", preparation.SPLITS)
def test_badges_are_endless(split):
    with pytest.raises(InputError, match=rf"params\.yaml: prepare\.{split}: null means all, and badges are endless"):
        prepare(BADGES, SMALL.model_copy(update={split: None}))


def test_an_unknown_icon_is_named():
    bad = task({"badges": {"severity": 0.5, "icons": {"cat": "audi", "dog": "trabant"}}})
    with pytest.raises(InputError, match=r"configs/tasks/pets\.yaml: source\.badges\.icons\.dog: .* no icon 'trabant'"):
        prepare(bad)


# Folders


def test_ids_are_paths_and_pictures_keep_their_bytes():
    pets()
    Path("pets/README.md").write_text("beside the labels' folders: no picture")
    Path("pets/.cache").mkdir()
    Path("pets/.cache/x").write_text("hidden")
    prepare(FOLDER, PrepareParams(train=None, validation=4, test=8))
    names = ids("train") + ids("validation") + ids("test")
    assert sorted(names) == sorted(
        f"{label}/{i:02d}.{kind}" for label, kind in (("cat", "png"), ("dog", "jpg")) for i in range(20)
    )
    rows = dataset._open("data/test.parquet").read().to_pylist()
    assert all(Path("pets", row["id"]).read_bytes() == row["image"]["bytes"] for row in rows)


def test_a_split_is_stratified_and_shuffled():
    for i in range(60):
        picture(f"{'cat' if i < 45 else 'dog'}/{i:02d}.png", i)
    report = prepare(FOLDER, PrepareParams(train=None, validation=4, test=20))
    assert report.rows["test"] == {"cat": 15, "dog": 5}
    assert report.rows["validation"] == {"cat": 3, "dog": 1}
    labels = dataset.ids_and_labels("data/train.parquet")[1]
    assert labels != sorted(labels)


def test_new_pictures_move_few_old_ones():
    pets(60)
    prepare(FOLDER, PrepareParams(train=None, validation=10, test=30), into="before")
    for i in range(60, 64):
        picture(f"cat/{i}.png", f"cat {i}")
    prepare(FOLDER, PrepareParams(train=None, validation=10, test=30), into="after")
    assert len(set(ids("test", "before")) & set(ids("test", "after"))) >= 26


def test_unreadable_files_and_copies_are_left_out_and_listed():
    pets()
    Path("pets/cat/empty.png").write_bytes(b"")
    Path("pets/cat/torn.jpg").write_bytes(Path("pets/dog/00.jpg").read_bytes()[:200])
    Path("pets/cat/zz-copy.png").write_bytes(Path("pets/cat/00.png").read_bytes())
    Image.open("pets/cat/01.png").save("pets/cat/zz-same-pixels.bmp")
    Path("pets/dog/cat-after-all.png").write_bytes(Path("pets/cat/02.png").read_bytes())
    events = []
    report = preparation.prepare(
        FOLDER, PrepareParams(train=None, validation=4, test=8), 3, Path("data"), events.append
    )
    assert Counter(skipped.kind for skipped in report.skipped) == {"unreadable": 2, "duplicate": 2, "conflict": 2}
    assert report.details() == {
        "train_rows": 27, "validation_rows": 4, "test_rows": 8, "classes": 2, "smallest_class": 19, "largest_class": 20,
        "duplicates_dropped": 2, "conflicts_dropped": 2, "unreadable_skipped": 2,
    }  # fmt: skip
    log = next(event.text for event in events if isinstance(event, Log))
    assert log == "pictures left out: 2 unreadable, 2 conflict, 2 duplicate; the first: cat/empty.png is empty"

    preparation.write_skipped(Path("plots/skipped.csv"), report)
    with Path("plots/skipped.csv").open(newline="") as file:
        rows = {row["id"]: (row["kind"], row["reason"]) for row in csv.DictReader(file)}
    assert rows["cat/zz-copy.png"] == ("duplicate", "is a copy of cat/00.png")
    assert rows["cat/zz-same-pixels.bmp"] == ("duplicate", "is a copy of cat/01.png")
    assert rows["cat/02.png"] == ("conflict", "is labelled cat, copies of it dog")
    assert rows["cat/torn.jpg"][0] == "unreadable"


def test_odd_formats_are_stored_as_pictures_that_datasets_reads(tmp_path):
    from datasets import Dataset

    pets(3)
    Image.open(picture("cat/cmyk.tif", "a")).convert("CMYK").save("pets/cat/cmyk.tif")
    Image.open(picture("cat/palette.gif", "b")).save("pets/cat/palette.gif")
    Image.fromarray(np.arange(96, dtype=np.uint16).reshape(12, 8) * 600).save("pets/dog/deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(picture("dog/turned.jpg", "c", (12, 30))).save("pets/dog/turned.jpg", exif=exif)
    prepare(FOLDER, PrepareParams(train=None, validation=1, test=1))
    sizes = {}
    for split in preparation.SPLITS:
        for row in Dataset.from_parquet(f"data/{split}.parquet", cache_dir=str(tmp_path / "cache")):
            assert row["image"].mode == "RGB"
            sizes[row["id"]] = row["image"].size
    assert len(sizes) == 10
    assert sizes["dog/turned.jpg"] == (12, 30)  # stored on its side as 30 x 12


def test_classes_map_the_folders_names():
    pets()
    Path("pets/dog").rename("pets/n02084071")
    of = task({"folder": "pets"}, classes={"cat": "cat", "n02084071": "dog"})
    assert prepare(of).rows["test"] == {"cat": 4, "dog": 4}


def metadata(name: str, text: str) -> Task:
    pets(6)
    Path("pets", name).write_text(text)
    return task({"folder": "pets", "metadata": name}, columns={"image": "file", "label": "what"})


ROWS = [(f"{kind}/{i:02d}.{'png' if kind == 'cat' else 'jpg'}", kind) for kind in ("cat", "dog") for i in range(6)]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_metadata_file_names_pictures_and_labels(kind):
    rows = [*ROWS, ("cat/gone.png", "cat")]
    if kind == "csv":
        text = "\ufefffile,other,what\n" + "".join(f"{name},x,{label}\n" for name, label in rows)
    else:
        text = "".join(json.dumps({"file": name, "what": label}) + "\n" for name, label in rows)
    report = prepare(metadata(f"labels.{kind}", text), PrepareParams(train=None, validation=2, test=4))
    assert report.details()["train_rows"] == 6
    assert [(skipped.id, skipped.reason) for skipped in report.skipped] == [
        ("cat/gone.png", "No such file or directory")
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.csv",
            "file,label\ncat/00.png,cat\n",
            r"pets/a\.csv: line 2: has no 'what', only file, label; columns\.label of .*pets\.yaml",
        ),
        ("a.csv", "file,what\ncat/00.png,cat\n,dog\n", r"pets/a\.csv: line 3: has no 'file'"),
        ("a.csv", "file,what\n../cat.png,cat\n", r"pets/a\.csv: line 2: '\.\./cat\.png' should be a path inside pets"),
        ("a.jsonl", '{"file": "cat/00.png", "what": "cat"}\n{"file"\n', r"pets/a\.jsonl: line 2: is no JSON"),
        ("a.jsonl", "[1]\n", r"pets/a\.jsonl: line 1: should be an object"),
        ("a.xlsx", "", r"pets/a\.xlsx: should be a \.csv or \.jsonl file"),
    ],
)
def test_a_bad_metadata_file_is_one_line(name, text, message):
    with pytest.raises(InputError, match=message):
        prepare(metadata(name, text))


def test_a_missing_metadata_file_is_one_line():
    pets(1)
    with pytest.raises(InputError, match=r"pets/a\.csv: no such file; source\.metadata names it"):
        prepare(task({"folder": "pets", "metadata": "a.csv"}))


def test_a_missing_folder_is_one_line():
    with pytest.raises(InputError, match=r"configs/tasks/pets\.yaml: source\.folder: 'pets' is no folder here"):
        prepare(FOLDER)


def test_an_empty_folder_is_one_line():
    Path("pets").mkdir()
    with pytest.raises(InputError, match=r"source\.folder: 'pets' has no pictures; it should hold LABEL/PICTURE"):
        prepare(FOLDER)


def test_an_unknown_label_in_the_data_is_one_line():
    pets(3)
    picture("bird/1.png", "bird")
    with pytest.raises(
        InputError, match=r"pets\.yaml: labels: 'bird', the label of 1 of .* \(bird/1\.png is one\).* add it"
    ):
        prepare(FOLDER)
    of = task({"folder": "pets"}, classes={"cat": "cat", "dog": "dog"})
    with pytest.raises(InputError, match=r"pets\.yaml: classes: 'bird'"):
        prepare(of)


def test_a_label_that_no_picture_has_is_one_line():
    pets(3)
    with pytest.raises(
        InputError, match=r"pets\.yaml: labels: no picture is labelled 'bird'; add pictures or remove the label"
    ):
        prepare(task({"folder": "pets"}, labels=("cat", "dog", "bird")))


def test_a_label_whose_pictures_are_all_unreadable_is_one_line():
    pets(3)
    for file in Path("pets/dog").iterdir():
        file.write_bytes(b"broken")
    with pytest.raises(InputError, match="no picture is labelled 'dog'"):
        prepare(FOLDER)


def test_a_folder_without_a_readable_picture_says_why():
    for name in ("cat/1.png", "dog/1.png"):
        picture(name, name).write_bytes(b"")
    with pytest.raises(InputError, match=r"not one picture can be used; the first, cat/1\.png, is empty"):
        prepare(FOLDER)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"test": 41}, "prepare.test: 41 rows are asked for, 40 are available"),
        ({"validation": 33}, "prepare.validation: 33 rows are asked for, 32 are available"),
        ({"train": 29}, "prepare.train: 29 rows are asked for, 28 are available"),
        ({"validation": 32, "train": None}, "prepare.train: all rows are asked for, 0 are available"),
        ({"test": None}, "prepare.test: null means all, which leaves none to train on; give a number"),
        ({"validation": None}, "prepare.validation: null means all, which leaves none to train on; give a number"),
    ],
)
def test_asking_for_more_than_there_is_names_key_asked_and_available(rows, message):
    pets()
    with pytest.raises(InputError, match=rf"params\.yaml: {message}"):
        prepare(FOLDER, SMALL.model_copy(update=rows))


def test_a_pinned_folder_is_checked(capsys):
    pets()
    of = task({"folder": "pets", "sha256": pins.folder_hash(Path("pets"))})
    prepare(of)
    assert "pinned" not in capsys.readouterr().err
    picture("cat/00.png", random.random())
    with pytest.raises(InputError, match=r"configs/tasks/pets\.yaml: source\.sha256: pets has changed"):
        prepare(of)
