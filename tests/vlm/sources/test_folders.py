import csv
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.vlm.sources.pets import FOLDER, SMALL, ids, pets, picture, prepare, task
from vlm.config import pins
from vlm.config.errors import InputError
from vlm.config.events import Log
from vlm.config.params import PrepareParams
from vlm.data import dataset
from vlm.sources import preparation
from vlm.sources.report import write_skipped


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


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
        "train_rows": 27, "validation_rows": 4, "test_rows": 8, "left_out": 6, "classes": 2, "smallest_class": 19,
        "largest_class": 20, "duplicates_left_out": 2, "conflicts_left_out": 2, "unreadable_left_out": 2,
        "other_classes_left_out": 0, "tied_to_another_split_left_out": 0, "excluded": 0, "relabelled": 0,
        "test_changed": 0, "near_duplicates": 0, "groups": 0, "blank": 0, "tiny_pictures": 0,
    }  # fmt: skip
    log = next(event.text for event in events if isinstance(event, Log))
    assert log == "6 pictures left out; the first: cat/empty.png is empty"
    assert report.summary() == (
        "27 train, 4 validation, 8 test; 6 pictures left out (2 unreadable, 2 with conflicting labels, 2 duplicate)"
    )

    write_skipped(Path("plots/skipped.csv"), report)
    with Path("plots/skipped.csv").open(newline="") as file:
        rows = {row["id"]: (row["kind"], row["reason"]) for row in csv.DictReader(file)}
    assert rows["cat/zz-copy.png"] == ("duplicate", "is a copy of cat/00.png")
    assert rows["cat/zz-same-pixels.bmp"] == ("duplicate", "is a copy of cat/01.png")
    other = "dog/cat-after-all.png"
    assert rows["cat/02.png"] == ("conflict", f"is labelled cat, but its copy {other} is labelled dog")
    assert rows[other] == ("conflict", "is labelled dog, but its copy cat/02.png is labelled cat")
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


def test_classes_map_folder_names_to_labels():
    pets()
    Path("pets/dog").rename("pets/n02084071")
    of = task({"folder": "pets"}, classes={"cat": "cat", "n02084071": "dog"})
    assert prepare(of).rows["test"] == {"cat": 4, "dog": 4}


def test_a_missing_folder_is_one_line():
    with pytest.raises(InputError) as caught:
        prepare(FOLDER)
    assert str(caught.value) == (
        "configs/tasks/pets.yaml: source.folder: there is no folder 'pets'; relative paths start at the repository, so put "
        f"the pictures in {Path.cwd() / 'pets'} or correct the path"
    )


@pytest.mark.parametrize("copy", ["standalone/tmpx1", "tmpx2"], ids=["temp", "queue"])
def test_a_relative_folder_is_found_from_dvcs_copy_of_the_repository(copy, work, monkeypatch):
    """`dvc exp run --temp` and `--queue` run the stage in a copy under .dvc/tmp/exps that has only what is in git."""
    pets()
    beside, inside = work / "repository" / ".." / "pets", work / "repository" / "pets"
    copied = work / "repository" / ".dvc/tmp/exps" / copy
    copied.mkdir(parents=True)
    monkeypatch.chdir(copied)
    with pytest.raises(InputError, match="there is no folder 'pets'"):
        prepare(FOLDER)
    of = task({"folder": "../pets"})
    assert of.source.folder_path.samefile(beside)
    assert prepare(of).total == 24
    beside.rename(inside)
    assert FOLDER.source.folder_path.samefile(inside)
    assert prepare(task({"folder": "pets", "sha256": pins.folder_hash(inside)})).total == 24
    (copied / "pets").mkdir()
    assert FOLDER.source.folder_path == Path("pets"), "what is in the copy is used"


def test_an_empty_folder_is_one_line():
    Path("pets").mkdir()
    with pytest.raises(InputError, match=r"source\.folder: 'pets' has no pictures; they should be in it as LABEL/"):
        prepare(FOLDER)


def test_an_unknown_label_in_the_data_is_one_line():
    pets(3)
    picture("bird/1.png", "bird")
    with pytest.raises(
        InputError,
        match=r"^configs/tasks/pets\.yaml: labels: 'bird', the label of 1 of the data's pictures \(bird/1\.png is one\), "
        r"is missing; add it, or `other_classes: leave_out` leaves such pictures out$",
    ):
        prepare(FOLDER)
    of = task({"folder": "pets"}, classes={"cat": "cat", "dog": "dog"})
    with pytest.raises(InputError, match=r"pets\.yaml: classes: 'bird'"):
        prepare(of)


@pytest.mark.parametrize("folder", ["Dog", "d o g", "dog ", "DOG!"])
def test_the_error_for_a_misspelled_folder_names_the_label_it_resembles(folder):
    pets(3)
    picture("bird/1.png", "bird")
    picture("bird/2.png", "another bird")
    picture(f"{folder}/1.png", "dog")
    with pytest.raises(InputError) as caught:
        prepare(FOLDER)
    assert str(caught.value) == (
        f"configs/tasks/pets.yaml: labels: {folder!r}, the label of 1 of the data's pictures ({folder}/1.png is one), is "
        "missing, but looks like 'dog'; spell both alike (case, white space and punctuation count), or `other_classes: "
        "leave_out` leaves such pictures out"
    )


def test_labels_in_another_unicode_form_resemble_each_other():
    """macOS writes an accent as a character of its own."""
    picture("S\u030ckoda/1.png", "skoda")
    form = r"spell both alike \(they differ in Unicode form only: .*; copy the data's name\)"
    with pytest.raises(InputError, match=f"but looks like '\u0160koda'; {form}, or `other_classes"):
        prepare(task({"folder": "pets"}, labels=("\u0160koda",)))
    with pytest.raises(InputError, match=f"1.png is labelled S\u030ckoda; {form}$"):
        prepare(task({"folder": "pets"}, labels=("\u0160koda",), other_classes="leave_out"))


def test_pictures_of_other_classes_can_be_left_out():
    pets()
    for i in range(3):
        picture(f"bird/{i}.png", f"bird {i}").write_bytes(b"is not even read")
    of = task({"folder": "pets"}, other_classes="leave_out")
    report = prepare(of, PrepareParams(train=None, validation=4, test=8))
    assert report.total == 40
    assert report.details()["left_out"] == report.details()["other_classes_left_out"] == 3
    assert report.summary() == "28 train, 4 validation, 8 test; 3 pictures left out (3 of other classes)"
    assert [(skipped.id, skipped.kind, skipped.reason) for skipped in report.skipped] == [
        (f"bird/{i}.png", "other", "is labelled bird") for i in range(3)
    ]
    mapped = task({"folder": "pets"}, classes={"cat": "cat", "dog": "dog"}, other_classes="leave_out")
    assert prepare(mapped).rows["test"] == {"cat": 4, "dog": 4}


def test_a_misspelled_folder_is_an_error_even_if_other_classes_are_left_out():
    pets(3)
    Path("pets/dog").rename("pets/Dog")
    with pytest.raises(
        InputError,
        match=r"labels: no picture is labelled 'dog', but Dog/00\.jpg is labelled Dog; spell both alike$",
    ):
        prepare(task({"folder": "pets"}, other_classes="leave_out"))


def test_other_classes_are_not_counted_as_available():
    pets(5)
    for i in range(9):
        picture(f"bird/{i}.png", f"bird {i}")
    with pytest.raises(InputError, match="11 rows are asked for, 10 are available"):
        prepare(task({"folder": "pets"}, other_classes="leave_out"), SMALL.model_copy(update={"test": 11}))


def test_blank_and_tiny_pictures_stay_and_are_reported():
    pets(6)
    for i, colour in enumerate(("white", "grey", "red", "blue")):
        Image.new("RGB", (20, 20), colour).save(f"pets/cat/blank-{i}.png")
    picture("dog/tiny.png", "tiny", (7, 30))
    report = prepare(FOLDER, PrepareParams(train=None, validation=2, test=4))
    assert report.total == 17
    assert {key: report.details()[key] for key in ("left_out", "blank", "tiny_pictures")} == {
        "left_out": 0, "blank": 4, "tiny_pictures": 1,
    }  # fmt: skip
    (line,) = report.warnings()
    assert line.startswith("pictures in the splits that show little: 4 blank (all pixels equal): cat/blank-")
    assert line.endswith(", ...; 1 tiny (a side shorter than 8 pixels): dog/tiny.png")


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
    with pytest.raises(InputError, match=r"pets\.yaml: labels: every picture labelled 'dog' is unreadable, a copy, or"):
        prepare(FOLDER)


def test_a_folder_without_a_readable_picture_says_why():
    for name in ("cat/1.png", "dog/1.png"):
        picture(name, name).write_bytes(b"")
    with pytest.raises(InputError, match=r"none of the pictures can be used; the first, cat/1\.png, is empty"):
        prepare(FOLDER)


def test_a_pinned_folder_is_checked(capsys):
    pets()
    of = task({"folder": "pets", "sha256": pins.folder_hash(Path("pets"))})
    prepare(of)
    assert "pinned" not in capsys.readouterr().err
    picture("cat/00.png", random.random())
    with pytest.raises(InputError, match=r"configs/tasks/pets\.yaml: source\.sha256: pets has changed"):
        prepare(of)


def test_a_dangling_link_is_left_out_or_stops_the_check_of_a_pin_with_one_line():
    pets()
    Path("pets/cat/gone.png").symlink_to("nowhere.png")
    report = prepare(FOLDER)
    assert [(skipped.id, skipped.reason) for skipped in report.skipped] == [("cat/gone.png", "does not exist")]
    with pytest.raises(InputError) as caught:
        prepare(task({"folder": "pets", "sha256": f"sha256:{'0' * 64}"}))
    assert str(caught.value) == ("pets/cat/gone.png: cannot be read: no such file or directory; correct or remove it")


def test_a_name_that_is_not_utf8_is_one_line():
    pets(3)
    Path("pets/cat/caf\udce9.png").write_bytes(b"")  # a byte of Latin-1
    for call in (lambda: prepare(FOLDER), lambda: pins.folder_hash(Path("pets"))):
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value) == "'pets/cat/caf\\udce9.png': the name is not UTF-8; rename it"
