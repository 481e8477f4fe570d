"""Decisions about single pictures, applied to the splits."""

from pathlib import Path

import pytest

from tests.vlm.sources.pets import BADGES, FOLDER, SMALL, ids, pets, picture, prepare, split_of, task
from vlm.config.errors import InputError
from vlm.config.params import PrepareParams
from vlm.config.task import Task
from vlm.data import dataset
from vlm.sources import preparation

ALL = PrepareParams(train=None, validation=4, test=8)
FILE = "configs/decisions/pets.yaml"


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def decided(of: Task, exclude: list[str] = (), relabel: dict[str, str] | None = None, keep: list[str] = ()) -> Task:
    relabel = {id_: {"to": to, "reason": f"is a {to}"} for id_, to in (relabel or {}).items()}
    decisions = {"exclude": {id_: "shows a shoe" for id_ in exclude}, "relabel": relabel}
    decisions["keep"] = {id_: "is one, from behind" for id_ in keep}
    return Task.model_validate(of.model_dump(exclude_unset=True) | decisions)


def rows(split: str, within: str = "data") -> list[tuple[str, str]]:
    return list(zip(*dataset.ids_and_labels(Path(within, f"{split}.parquet")), strict=True))


def other(label: str) -> str:
    return {"cat": "dog", "dog": "cat"}[label]


@pytest.mark.parametrize("of", [BADGES, FOLDER], ids=["badges", "folder"])
def test_all_rows_but_the_excluded_and_relabelled_ones_stay_as_they_were(of):
    pets()
    prepare(of, into="before")
    before = {split: rows(split, "before") for split in preparation.SPLITS}
    gone = [before["test"][2][0], before["test"][5][0], before["train"][0][0]]
    changed = dict([before["test"][1], before["validation"][3], before["train"][7]])
    report = prepare(decided(of, gone, {id_: other(label) for id_, label in changed.items()}))
    for split in preparation.SPLITS:
        assert rows(split) == [
            (id_, other(label) if id_ in changed else label) for id_, label in before[split] if id_ not in gone
        ]
    assert [(skip.id, skip.kind, skip.reason) for skip in report.skipped] == [
        (id_, "excluded", "is excluded: shows a shoe") for id_ in sorted(gone, key=lambda id_: id_ != gone[2])
    ]
    assert set(report.relabelled) == set(changed)
    assert report.test_changed == 3
    counts = {split: dict(cat=0, dog=0) for split in preparation.SPLITS}
    for split in preparation.SPLITS:
        for _, label in rows(split):
            counts[split][label] += 1
    assert report.rows == counts
    assert report.summary() == (
        "11 train, 4 validation, 6 test; 3 pictures left out (3 excluded); 3 relabelled; decisions changed 3 test rows, "
        "which makes test another benchmark"
    )


@pytest.mark.parametrize("of", [BADGES, FOLDER], ids=["badges", "folder"])
def test_decisions_about_rows_that_were_not_drawn_change_nothing(of):
    pets()
    prepare(of, into="before")
    drawn = split_of("before")
    names = [f"{split}-{i:06d}" for split in preparation.SPLITS for i in range(50)]
    if of is FOLDER:
        names = [f"{label}/{i:02d}.{kind}" for label, kind in (("cat", "png"), ("dog", "jpg")) for i in range(20)]
    free = [name for name in names if name not in drawn]
    report = prepare(decided(of, free[:3], {free[3]: "cat", free[4]: "dog"}, free[5:6]))
    beyond = (
        "configs/tasks/pets.yaml: no effect of the decision about train-000012 (and 5 more), because train has 12 rows"
    )
    for split in preparation.SPLITS:
        assert Path("data", f"{split}.parquet").read_bytes() == Path("before", f"{split}.parquet").read_bytes()
    assert (report.skipped, report.relabelled, report.test_changed) == ((), (), 0)
    assert report.warnings() == ([beyond] if of is BADGES else [])


@pytest.mark.parametrize("of", [BADGES, FOLDER], ids=["badges", "folder"])
def test_kept_pictures_change_nothing(of):
    pets()
    prepare(of, into="before")
    report = prepare(decided(of, keep=[ids(split, "before")[0] for split in preparation.SPLITS]))
    for split in preparation.SPLITS:
        assert Path("data", f"{split}.parquet").read_bytes() == Path("before", f"{split}.parquet").read_bytes()
    assert (report.skipped, report.relabelled, report.test_changed, report.warnings()) == ((), (), 0, [])


@pytest.mark.parametrize("of", [BADGES, FOLDER], ids=["badges", "folder"])
def test_a_new_label_that_is_the_old_one_changes_nothing_and_is_a_warning(of):
    pets()
    prepare(of, into="before")
    (one, label), *_ = rows("train", "before")
    report = prepare(decided(of, relabel={one: label}))
    assert Path("data/train.parquet").read_bytes() == Path("before/train.parquet").read_bytes()
    assert (report.relabelled, report.test_changed) == ((), 0)
    assert report.warnings() == [
        f"configs/tasks/pets.yaml: relabel: no effect on {one}, which the data labels {label!r}, too; move it to keep if "
        "the label is right, and correct it if not"
    ]
    several = prepare(decided(of, relabel=dict([*rows("train", "before")[:2], *rows("test", "before")[:1]])))
    assert f"no effect on {one} (and 2 more like it), which" in several.warnings()[0]


def test_a_label_may_have_relabelled_pictures_only():
    """One of the ways to treat pictures that show none of the labels."""
    pets()
    with pytest.raises(InputError, match="no picture is labelled 'other'"):
        prepare(task({"folder": "pets"}, labels=("cat", "dog", "other")))
    of = decided(
        task({"folder": "pets"}, labels=("cat", "dog", "other")),
        relabel={f"cat/{i:02d}.png": "other" for i in range(18)},
    )
    report = prepare(of, ALL)
    assert sum(counts["other"] for counts in report.rows.values()) == 18
    assert all(counts["cat"] + counts["other"] == counts["dog"] for counts in report.rows.values())


def test_a_decision_settles_a_conflict_of_copies():
    pets()
    Path("pets/dog/copy.png").write_bytes(Path("pets/cat/00.png").read_bytes())
    assert prepare(FOLDER, ALL).total == 39
    report = prepare(decided(FOLDER, exclude=["dog/copy.png"]), ALL)
    assert report.total == 40
    assert [(skip.id, skip.kind) for skip in report.skipped] == [("dog/copy.png", "duplicate")]
    report = prepare(decided(FOLDER, relabel={"cat/00.png": "dog"}), ALL)
    assert report.total == 40 and report.rows["train"] != report.rows["test"]
    assert dict(row for split in preparation.SPLITS for row in rows(split))["cat/00.png"] == "dog"


@pytest.mark.parametrize("rows_", [ALL, PrepareParams(train=20, validation=4, test=8)], ids=["all", "a number"])
def test_copies_that_a_decision_brings_back_are_drawn_for_train_only(rows_):
    pets(24)
    copies = [f"dog/copy-{i}.png" for i in range(10)]
    for i, copy in enumerate(copies):
        Path("pets", copy).write_bytes(Path(f"pets/cat/{i:02d}.png").read_bytes())
    prepare(FOLDER, rows_, into="before")
    of = decided(FOLDER, exclude=copies[:5], relabel={f"cat/{i:02d}.png": "dog" for i in range(5, 10)})
    report = prepare(of, rows_)
    assert report.test_changed == 0
    for split in ("test", "validation"):
        assert Path("data", f"{split}.parquet").read_bytes() == Path("before", f"{split}.parquet").read_bytes()
    back = {f"cat/{i:02d}.png" for i in range(10)} & set(ids("train"))
    assert back and not any(name in split_of("before") for name in back)
    if rows_ is ALL:
        assert set(ids("train")) == {*ids("train", "before"), *(f"cat/{i:02d}.png" for i in range(10))}


def test_an_excluded_blank_picture_is_no_longer_reported():
    from PIL import Image

    pets()
    Image.new("RGB", (20, 20)).save("pets/cat/blank.png")
    assert len(prepare(FOLDER, ALL).warnings()) == 1
    assert prepare(decided(FOLDER, exclude=["cat/blank.png"]), ALL).warnings() == []


def test_a_relabelled_picture_that_is_left_out_is_a_warning():
    pets()
    picture("bird/0.png", "bird")
    Path("pets/cat/00.png").write_bytes(b"")
    of = decided(
        task({"folder": "pets"}, other_classes="leave_out"), relabel={"bird/0.png": "cat", "cat/00.png": "dog"}
    )
    assert prepare(of, ALL).warnings() == [
        "configs/tasks/pets.yaml: relabel: no effect on 2 pictures left out of the splits, such as cat/00.png, which is "
        "empty"
    ]


# Wrong decisions


@pytest.mark.parametrize(
    ("of", "exclude", "relabel", "keep", "message"),
    [
        (FOLDER, ["cat/00.jpg"], {}, [], "exclude: there is no picture 'cat/00.jpg'; ids look like 'cat/00.png'"),
        (FOLDER, ["x", "y"], {}, [], "exclude: there is no picture 'x' (and 1 more); ids look like 'cat/00.png'"),
        (
            FOLDER,
            [],
            {"dog/00.png": "cat"},
            [],
            "relabel: there is no picture 'dog/00.png'; ids look like 'dog/00.jpg'",
        ),
        (FOLDER, [], {}, ["dog/00.png"], "keep: there is no picture 'dog/00.png'; ids look like 'dog/00.jpg'"),
        (BADGES, ["test-12"], {}, [], "exclude: there is no picture 'test-12'; ids look like 'train-000000'"),
        (BADGES, [], {"0": "cat"}, [], "relabel: there is no picture '0'; ids look like 'train-000000'"),
    ],
)
def test_an_unknown_picture_is_one_line(of, exclude, relabel, keep, message):
    pets()
    with pytest.raises(InputError) as caught:
        prepare(decided(of, exclude, relabel, keep))
    assert str(caught.value) == f"configs/tasks/pets.yaml: {message}"
    assert not list(Path("data").iterdir())


def test_a_split_without_rows_is_one_line():
    pets()
    prepare(FOLDER)
    of = decided(FOLDER, exclude=ids("validation"))
    before = Path("data/validation.parquet").read_bytes()
    with pytest.raises(
        InputError, match=r"^configs/tasks/pets\.yaml: exclude: leaves no row in validation; exclude fewer"
    ):
        prepare(of)
    assert Path("data/validation.parquet").read_bytes() == before


# A file of decisions


def in_file(text: str) -> Task:
    Path(FILE).parent.mkdir(parents=True, exist_ok=True)
    Path(FILE).write_text(text)
    return task({"folder": "pets"}, decisions=FILE)


def test_decisions_in_a_file_are_those_in_the_task():
    pets()
    prepare(FOLDER, into="before")
    one, two, three = ids("test", "before")[:3]
    label = dict(rows("test", "before"))[two]
    prepare(decided(FOLDER, [one], {two: other(label)}), into="in_task")
    text = f"exclude:\n  {one}: shows a shoe\nrelabel:\n  {two}: {{to: {other(label)}, reason: 'was wrong: see the picture'}}\n"
    text += f"keep:\n  {three}: is one\n"
    report = prepare(in_file(text), into="in_file")
    assert report.test_changed == 2
    assert Path("in_file/test.parquet").read_bytes() == Path("in_task/test.parquet").read_bytes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("exclude: {cat/00.jpg: why}", "exclude: there is no picture 'cat/00.jpg'; ids look like 'cat/00.png'"),
        (
            "relabel: {cat/00.png: {to: bird, reason: why}}",
            "relabel.cat/00.png.to: 'bird' is not one of the task's labels; correct it, or add it to labels",
        ),
        (
            "exclude: {cat/00.png: why}\nrelabel: {cat/00.png: {to: dog, reason: why}}",
            "relabel: 'cat/00.png' is in exclude, too; remove one of the two",
        ),
        (
            "exclude: {cat/00.png: why}\nkeep: {cat/00.png: why}",
            "keep: 'cat/00.png' is in exclude, too; remove one of the two",
        ),
        ("keep: {cat/00.jpg: why}", "keep: there is no picture 'cat/00.jpg'; ids look like 'cat/00.png'"),
        ("exclude:\n  cat/00.png:\n", "exclude.cat/00.png: null is an empty reason; write why"),
        ("keep: {cat/00.png: ''}", "keep.cat/00.png: '' is an empty reason; write why"),
        (
            "relabel: {cat/00.png: {to: dog, reason: }}",
            "relabel.cat/00.png.reason: null is an empty reason; write why",
        ),
        ("relabel: {cat/00.png: {to: , reason: why}}", "relabel.cat/00.png.to: is empty; write some text"),
        ("exclude: {cat/00.png: 7}", "exclude.cat/00.png: 7 should be text; put it in quotes"),
        ("exclude: [cat/00.png]", "exclude: ['cat/00.png'] should be a mapping of keys to values"),
        ("relabel: {cat/00.png: dog}", "relabel.cat/00.png: 'dog' should be a mapping of keys to values"),
        ("relabel: {cat/00.png: {to: dog}}", "relabel.cat/00.png.reason: is missing; add it"),
        (
            "relabel: {cat/00.png: {to: dog, reason: why, by: me}}",
            "relabel.cat/00.png.by: there is no such key; the keys here are to, reason",
        ),
        ("remove: {cat/00.png: why}", "remove: there is no such key; the keys here are exclude, relabel, keep"),
        ("exclude: {17: why}", "exclude.17: 17 should be text; put it in quotes"),
        ("exclude: {a: b, a: c}", "exclude.a: is there twice, in line 1; remove one of the two"),
        (
            "relabel:\n  cat/00.png: {to: dog, reason: why}\nexclude:\n  cat/01.png: why\n"
            "relabel:\n  cat/02.png: {to: dog, reason: why}\n",
            "relabel: is there twice, in lines 1 and 5; join the two",
        ),
        ("exclude: {1: b, 0x1: c}", 'line 1: found duplicate key "1" with value "c" (original value: "b")'),
        ("exclude: {a", "line 1: expected ',' or '}', but got '<stream end>'"),
        ("", "should be a mapping of keys to values"),
    ],
)
def test_a_wrong_file_is_one_line(text, message):
    pets()
    with pytest.raises(InputError) as caught:
        prepare(in_file(text), SMALL)
    assert str(caught.value) == f"{FILE}: {message}"


def test_a_missing_file_is_one_line():
    pets()
    with pytest.raises(InputError) as caught:
        prepare(task({"folder": "pets"}, decisions=FILE))
    assert str(caught.value).startswith(
        f"configs/tasks/pets.yaml: decisions: there is no file '{FILE}'; its path starts at"
    )
