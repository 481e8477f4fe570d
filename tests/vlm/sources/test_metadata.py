import json
from pathlib import Path

import pytest

from tests.vlm.sources.pets import ids, pets, picture, prepare, split_of, task
from vlm.config.errors import InputError
from vlm.config.params import PrepareParams
from vlm.config.task import Task


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def metadata(name: str, text: str | bytes, **more) -> Task:
    """A task with six cats, six dogs and a metadata file."""
    pets(6)
    Path("pets", name).write_bytes(text.encode() if isinstance(text, str) else text)
    return task({"folder": "pets", "metadata": name}, columns={"image": "file", "label": "what"}, **more)


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
    assert [(skipped.id, skipped.reason) for skipped in report.skipped] == [("cat/gone.png", "does not exist")]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.csv",
            "file,label\ncat/00.png,cat\n",
            "pets/a.csv: line 2: has no column 'what', only file, label; columns.label of configs/tasks/pets.yaml should "
            "name the column that holds the label",
        ),
        (
            "a.csv",
            "picture,what\ncat/00.png,cat\n",
            "pets/a.csv: line 2: has no column 'file', only picture, what; columns.image of configs/tasks/pets.yaml "
            "should name the column that holds the image",
        ),
        (
            "a.csv",
            "file;what\ncat/00.png;cat\n",
            "pets/a.csv: line 2: has no column 'file', only file;what; the columns should be separated by commas",
        ),
        (
            "a.csv",
            "file,what\ncat/00.png,cat\n,dog\n",
            "pets/a.csv: line 3: column 'file' is empty; it should hold a picture's path, relative to source.folder",
        ),
        (
            "a.csv",
            "file,what\ncat/00.png,cat\n\ncat/01.png\n",
            "pets/a.csv: line 4: column 'what' is empty; it should hold the picture's label",
        ),
        ("a.csv", "file,what\n", "pets/a.csv: has only a header (file, what); add a row for each picture"),
        ("a.csv", "", "pets/a.csv: is empty; its first line should name the columns"),
        ("a.jsonl", "\n", "pets/a.jsonl: has no rows; add one for each picture"),
        ("a.jsonl", '{"file": "cat/00.png"}\n', "pets/a.jsonl: line 1: has no column 'what', only file; columns.label"),
        ("a.csv", b"file,what\ncat/00.png,\xff\n", "pets/a.csv: cannot be read as CSV or JSONL in UTF-8"),
        ("a.csv", "file,what\n../cat.png,cat\n", "pets/a.csv: line 2: '../cat.png' should be a path inside pets"),
        (
            "a.csv",
            "file,what\ncat/00.png,cat\n./cat/01.png,cat\ncat/._02.png,cat\n.cache/cat.png,cat\n",
            "pets/a.csv: line 4: 'cat/._02.png' (and 1 more) is hidden or in a hidden folder, and source.sha256 covers no "
            "such pictures; remove the row, or rename the picture",
        ),
        ("a.jsonl", '{"file": ".0.png", "what": "cat"}\n', "pets/a.jsonl: line 1: '.0.png' is hidden or in a hidden"),
        ("a.jsonl", '{"file": "cat/00.png", "what": "cat"}\n{"file"\n', "pets/a.jsonl: line 2: is not JSON"),
        (
            "a.jsonl",
            '{"file": "\\udce9.png", "what": "cat"}\n',
            "pets/a.jsonl: line 1: column 'file': '\\udce9.png' is not valid Unicode; correct it",
        ),
        ("a.jsonl", "[1]\n", "pets/a.jsonl: line 1: should be a JSON object"),
        ("a.xlsx", "", "pets/a.xlsx: should be a .csv or .jsonl file"),
    ],
)
def test_a_bad_metadata_file_is_one_line(name, text, message):
    with pytest.raises(InputError) as caught:
        prepare(metadata(name, text))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert not list(Path("data").iterdir())


def test_a_missing_metadata_file_is_one_line():
    pets(1)
    with pytest.raises(InputError, match=r"pets/a\.csv: no such file; source\.metadata names it"):
        prepare(task({"folder": "pets", "metadata": "a.csv"}))


def test_a_path_with_a_null_byte_is_a_picture_that_cannot_be_read():
    rows = [*ROWS, ("a\0.png", "cat")]
    of = metadata("a.jsonl", "".join(json.dumps({"file": name, "what": label}) + "\n" for name, label in rows))
    report = prepare(of, PrepareParams(train=None, validation=2, test=4))
    assert [(skip.id, skip.reason) for skip in report.skipped] == [("a\0.png", "cannot be read: embedded null byte")]


def test_pictures_of_other_classes_can_be_left_out():
    text = "file,what\n" + "".join(f"{name},{label}\n" for name, label in [*ROWS, ("cat/05.png", "bird")])
    with pytest.raises(InputError, match="'bird', the label of 1 of the data's pictures"):
        prepare(metadata("labels.csv", text))
    of = metadata("labels.csv", text, other_classes="leave_out")
    report = prepare(of, PrepareParams(train=None, validation=2, test=4))
    assert report.total == 12
    assert [(skipped.id, skipped.kind, skipped.reason) for skipped in report.skipped] == [
        ("cat/05.png", "other", "is labelled bird")
    ]


# Groups


def grouped(rows: list[tuple[str, str, str]], **columns) -> Task:
    """A task with a metadata file that lists a picture, its label and its group in each row, in this order."""
    for name, _, _ in rows:
        picture(name, name)
    text = "file,what,animal\n" + "".join(f"{name},{label},{group}\n" for name, label, group in rows)
    Path("pets/labels.csv").write_text(text)
    columns = {"image": "file", "label": "what", "group": "animal"} | columns
    return task({"folder": "pets", "metadata": "labels.csv"}, columns=columns)


# Three or four pictures of each of 40 animals; of each tenth picture nobody knows the animal.
ANIMALS = [
    (f"{label}/{i:03d}.png", label, "" if i % 10 == 9 else f"{label} {i // 4}")
    for label in ("cat", "dog")
    for i in range(80)
]
ROWS_OF_ANIMALS = PrepareParams(train=None, validation=16, test=32)


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_a_group_is_in_one_split(seed):
    report = prepare(grouped(ANIMALS), ROWS_OF_ANIMALS, seed)
    assert (len(ids("test")), len(ids("validation"))) == (32, 16)
    assert report.rows["test"] == {"cat": 16, "dog": 16}
    found = split_of()
    assert len(found) + len(report.skipped) == 160
    groups = {name: group for name, _, group in ANIMALS if group}
    of_group = {
        group: {found[name] for name in groups if groups[name] == group and name in found} for group in groups.values()
    }
    assert all(len(splits) == 1 for splits in of_group.values())
    assert report.groups == len(of_group) == 40
    assert len(report.skipped) <= 6 and report.warnings() == []
    for skipped in report.skipped:
        assert skipped.kind == "tied"
        assert skipped.reason.startswith(f"is in group {groups[skipped.id]}, like ")


def test_groups_do_not_depend_on_the_order_of_the_rows():
    prepare(grouped(ANIMALS), ROWS_OF_ANIMALS, into="one")
    prepare(grouped(ANIMALS[::-1]), ROWS_OF_ANIMALS, into="two")
    for split in ("train", "validation", "test"):
        assert Path("one", f"{split}.parquet").read_bytes() == Path("two", f"{split}.parquet").read_bytes()


def test_a_group_may_have_several_labels():
    rows = [(f"cat/{i:03d}.png", "cat" if i % 3 else "dog", str(i // 6)) for i in range(180)]
    report = prepare(grouped(rows), PrepareParams(train=None, validation=18, test=36))
    found = split_of()
    assert len(report.skipped) <= 12
    for group in range(30):
        assert (
            len({found[f"cat/{i:03d}.png"] for i in range(6 * group, 6 * group + 6) if f"cat/{i:03d}.png" in found})
            == 1
        )


def test_fewer_groups_than_splits_are_a_warning():
    rows = [
        (f"{label}/{i:02d}.png", label, f"{label} {i // size}")
        for label, size in (("cat", 10), ("dog", 2))
        for i in range(20)
    ]
    report = prepare(grouped(rows), PrepareParams(train=4, validation=2, test=4))
    assert report.warnings() == [
        "params.yaml: prepare: 4 train rows for 2 labels, none for 'cat'; ask for more rows",
        "columns.group: 'cat' has pictures of 2 groups, too few for 3 splits",
    ]


def test_the_error_for_too_few_pictures_says_how_many_are_tied():
    rows = [(f"{label}/{i:02d}.png", label, label) for label in ("cat", "dog") for i in range(10)]
    with pytest.raises(
        InputError,
        match=r"prepare\.validation: 2 rows are asked for, 0 are available \(readable, distinct, in no other split; 16 more "
        r"are tied to other splits\); there are too few groups \(columns\.group\) for the splits$",
    ):
        prepare(grouped(rows), PrepareParams(train=None, validation=2, test=4))


def test_a_missing_column_of_groups_is_one_line():
    with pytest.raises(
        InputError,
        match=r"^pets/labels\.csv: line 2: has no column 'patient', only file, what, animal; columns\.group of "
        r"configs/tasks/pets\.yaml should name the column that holds the group$",
    ):
        prepare(grouped(ANIMALS, group="patient"))
