"""A folder with splits of its own, and near duplicates in a folder without."""

from pathlib import Path

import pytest

from tests.vlm.sources.pets import FOLDER, ids, photo, picture, prepare, saved_again, split_of, task
from vlm.config.errors import InputError
from vlm.config.params import PrepareParams
from vlm.data import dataset

ALL = PrepareParams(train=None, validation=None, test=None)


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def own_splits(**sizes: int) -> None:
    """Writes pets/SPLIT/LABEL/NUMBER.png, `sizes` pictures of each label."""
    for split, size in sizes.items():
        for label in ("cat", "dog"):
            for i in range(size):
                picture(f"{split}/{label}/{i:02d}.png", f"{split} {label} {i}")


@pytest.mark.parametrize("validation", ["validation", "val"])
def test_splits_of_ones_own_are_taken_as_they_are(validation):
    own_splits(train=6, **{validation: 3}, test=4)
    Path("pets/train/README.md").write_text("has no label")
    report = prepare(FOLDER, ALL)
    assert report.warnings() == []
    found = split_of()
    assert len(found) == 26
    folders = {"train": "train", validation: "validation", "test": "test"}
    assert all(found[id_] == folders[id_.split("/")[0]] for id_ in found)
    found_ids, labels = dataset.ids_and_labels("data/test.parquet")
    assert [id_.split("/")[1] for id_ in found_ids] == labels


@pytest.mark.parametrize("lacking", ["validation", "test"])
def test_a_split_without_a_folder_is_held_out_of_train(lacking):
    own_splits(train=8, **dict.fromkeys({"validation", "test"} - {lacking}, 3))
    prepare(FOLDER, ALL.model_copy(update={lacking: 4}))
    assert len(ids(lacking)) == 4 and all(id_.startswith("train/") for id_ in ids(lacking))
    assert len(ids("train")) == 12
    with pytest.raises(InputError, match=rf"prepare\.{lacking}: null means all, which leaves none to train on"):
        prepare(FOLDER, ALL)


def test_fewer_rows_of_a_split_of_ones_own_can_be_asked_for():
    own_splits(train=8, val=3, test=5)
    assert prepare(FOLDER, PrepareParams(train=6, validation=2, test=4)).total == 12
    with pytest.raises(InputError, match=r"prepare\.test: 12 rows are asked for, 10 are available .* or null for all$"):
        prepare(FOLDER, ALL.model_copy(update={"test": 12}))


def test_of_copies_across_splits_the_one_in_test_stays():
    own_splits(train=6, val=3, test=4)
    for copy in ("train/cat/00.png", "val/cat/00.png"):
        Path("pets", copy).write_bytes(Path("pets/test/cat/00.png").read_bytes())
    Path("pets/train/dog/00.png").write_bytes(Path("pets/val/dog/00.png").read_bytes())
    report = prepare(FOLDER, ALL)
    assert {skipped.id: skipped.reason for skipped in report.skipped} == {
        "train/cat/00.png": "is a copy of test/cat/00.png",
        "val/cat/00.png": "is a copy of test/cat/00.png",
        "train/dog/00.png": "is a copy of val/dog/00.png",
    }


def test_near_duplicates_across_splits_of_ones_own_stay():
    own_splits(train=6, val=3, test=4)
    photo("train/cat/a.png", "a")
    saved_again("test/cat/a.jpg", "train/cat/a.png")
    report = prepare(FOLDER, ALL)
    assert report.total == 28 and report.near_duplicates == 0


def test_a_label_may_be_called_like_a_split():
    for label in ("train", "test"):
        for i in range(10):
            picture(f"{label}/{i}.png", f"{label} {i}")
    prepare(task({"folder": "pets"}, labels=("train", "test")), PrepareParams(train=12, validation=2, test=4))
    assert set(dataset.ids_and_labels("data/train.parquet")[1]) == {"train", "test"}


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        (
            "extra/cat",
            "source.folder: 'pets' has extra/ beside train/; a folder with splits of its own should have train/,",
        ),
        ("val/cat", "source.folder: 'pets' has val/ and validation/; put their pictures into one of them"),
        ("test", "source.folder: test/ in 'pets' has no pictures; they should be in it as LABEL/PICTURE"),
    ],
)
def test_a_folder_that_is_neither_is_one_line(folder, message):
    own_splits(train=3, validation=2)
    picture(f"{folder}/1.png", 1)
    with pytest.raises(InputError) as caught:
        prepare(FOLDER, ALL)
    assert str(caught.value).startswith(f"configs/tasks/pets.yaml: {message}")


def test_train_may_be_the_only_split_of_ones_own():
    own_splits(train=8)
    assert prepare(FOLDER, PrepareParams(train=None, validation=2, test=4)).total == 16


def test_pictures_in_train_without_a_label_are_one_line():
    picture("train/1.png", 1)
    with pytest.raises(
        InputError, match=r"labels: 'train', the label of 1 of the data's pictures \(train/1\.png is one"
    ):
        prepare(FOLDER, ALL)


def test_a_split_of_ones_own_without_a_usable_picture_is_one_line():
    own_splits(train=6, val=1, test=4)
    for label in ("cat", "dog"):
        Path(f"pets/val/{label}/00.png").write_bytes(Path(f"pets/test/{label}/00.png").read_bytes())
    with pytest.raises(InputError) as caught:
        prepare(FOLDER, ALL)
    assert str(caught.value) == (
        "params.yaml: prepare.validation: null means all, but the source's validation split has no usable picture of a "
        "label (readable, distinct, in no other split); add pictures to it"
    )


# Near duplicates in a folder without splits


def photos(count: int = 20) -> None:
    for label in ("cat", "dog"):
        for i in range(count):
            photo(f"{label}/{i:02d}.png", f"{label} {i}")


ROWS = PrepareParams(train=None, validation=6, test=12)


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_near_duplicates_are_in_one_split(seed):
    photos()
    for i in range(0, 20, 2):
        saved_again(f"cat/{i:02d}-again.jpg", f"cat/{i:02d}.png")
    report = prepare(FOLDER, ROWS, seed)
    assert (report.total, report.near_duplicates) == (50, 20)
    assert "; 20 near duplicates kept on one side" in report.summary()
    assert report.warnings() == []
    found = split_of()
    for i in range(0, 20, 2):
        assert found[f"cat/{i:02d}-again.jpg"] == found[f"cat/{i:02d}.png"]


def test_near_duplicates_with_different_labels_are_in_one_split_too():
    photos()
    for i in range(10):
        saved_again(f"dog/cat-{i:02d}.jpg", f"cat/{i:02d}.png")
    prepare(FOLDER, ROWS)
    found = split_of()
    assert all(found[f"dog/cat-{i:02d}.jpg"] == found[f"cat/{i:02d}.png"] for i in range(10))


def test_what_does_not_fit_is_left_out_and_listed():
    """Ten of 20 cats look alike. Twelve cats are wanted in test, and the other ten were drawn first."""
    photos(11)
    for i in range(9):
        saved_again(f"cat/again-{i}.jpg", "cat/00.png", scale=0.9 - 0.02 * i)
    report = prepare(FOLDER, PrepareParams(train=None, validation=2, test=18), seed=8)
    assert report.details()["tied_to_another_split_left_out"] == len(report.skipped) > 0
    assert {skipped.kind for skipped in report.skipped} == {"tied"}
    assert report.total + len(report.skipped) == 31
    first, reason = report.skipped[0].id, report.skipped[0].reason
    assert reason.startswith("is a near duplicate of cat/") and reason.endswith("in test, directly or through others")
    assert f"({len(report.skipped)} tied to another split)" in report.summary()
    assert first not in split_of()


def test_the_error_for_too_few_pictures_says_that_many_look_alike():
    photos(1)
    for i in range(8):
        for label in ("cat", "dog"):
            saved_again(f"{label}/again-{i}.jpg", f"{label}/00.png", scale=0.9 - 0.02 * i)
    with pytest.raises(
        InputError, match=r"16 more are tied to other splits\); there are too many near duplicates for the s"
    ):
        prepare(FOLDER, PrepareParams(train=None, validation=2, test=2))


def test_a_class_that_looks_alike_is_split_like_any_other_and_said():
    photos(10)
    for i in range(30):
        saved_again(f"cat/again-{i:02d}.jpg", "cat/00.png", scale=0.99 - 0.01 * i)
    report = prepare(FOLDER, ROWS)
    assert report.total == 50
    assert report.warnings() == [
        "near duplicates: 31 of 40 pictures of 'cat' look alike to the perceptual hash, so they are split like other "
        "pictures"
    ]
