import json
from pathlib import Path

import pytest

from tests.vlm.sources.pets import pets, prepare, task
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
        ("a.jsonl", '{"file": "cat/00.png", "what": "cat"}\n{"file"\n', "pets/a.jsonl: line 2: is not JSON"),
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
