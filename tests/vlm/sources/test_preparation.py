from pathlib import Path

import pytest

from tests.vlm.sources.pets import BADGES, FOLDER, SMALL, ids, pets, prepare, task
from vlm.config.errors import InputError
from vlm.config.events import Progress
from vlm.config.params import PrepareParams
from vlm.data import dataset
from vlm.sources import preparation


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# What any source gives


@pytest.mark.parametrize("of", [BADGES, FOLDER], ids=["badges", "folder"])
def test_equal_inputs_give_equal_files(of):
    pets()
    prepare(of, into="one")
    prepare(of, into="two")
    for split in preparation.SPLITS:
        assert Path("one", f"{split}.parquet").read_bytes() == Path("two", f"{split}.parquet").read_bytes()


@pytest.mark.parametrize("of", [BADGES, FOLDER], ids=["badges", "folder"])
def test_splits_have_the_rows_asked_for_and_no_row_in_common(of):
    pets()
    report = prepare(of)
    found = {split: ids(split) for split in preparation.SPLITS}
    assert {split: len(rows) for split, rows in found.items()} == {"train": 12, "validation": 4, "test": 8}
    assert len({id_ for rows in found.values() for id_ in rows}) == 24
    for split in preparation.SPLITS:
        labels = dataset.ids_and_labels(f"data/{split}.parquet")[1]
        assert report.rows[split] == {label: labels.count(label) for label in ("cat", "dog")}


@pytest.mark.parametrize("of", [BADGES, FOLDER], ids=["badges", "folder"])
def test_another_number_of_training_rows_changes_nothing_in_test_or_validation(of):
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
def test_the_error_for_too_few_pictures_names_the_key_and_both_numbers(rows, message):
    pets()
    with pytest.raises(InputError, match=rf"params\.yaml: {message}"):
        prepare(FOLDER, SMALL.model_copy(update=rows))


# Badges


def test_badges_draw_from_the_tasks_labels():
    prepare(BADGES)
    assert set(dataset.ids_and_labels("data/train.parquet")[1]) == {"cat", "dog"}
    assert ids("train")[:2] == ["train-000000", "train-000001"]


@pytest.mark.parametrize("split", preparation.SPLITS)
def test_badges_need_a_number_of_rows(split):
    with pytest.raises(InputError, match=rf"params\.yaml: prepare\.{split}: null means all, but badges have no limit"):
        prepare(BADGES, SMALL.model_copy(update={split: None}))


def test_an_unknown_icon_is_named():
    bad = task({"badges": {"severity": 0.5, "icons": {"cat": "audi", "dog": "trabant"}}})
    with pytest.raises(InputError, match=r"configs/tasks/pets\.yaml: source\.badges\.icons\.dog: .* no icon 'trabant'"):
        prepare(bad)
