import pytest

from vlm.sources.report import Report


def report(**more) -> Report:
    return Report(rows={split: {"cat": 5, "dog": 5} for split in ("train", "validation", "test")}, **more)


def rows(**of_splits) -> Report:
    """A report with these counts, and five rows of each label in the other splits."""
    labels = next(iter(of_splits.values()))
    return Report(rows={split: dict.fromkeys(labels, 5) for split in ("train", "validation", "test")} | of_splits)


def test_what_is_normal_causes_no_warning():
    assert report(in_source={"cat": 50, "dog": 70}).warnings() == []
    assert rows(train={"cat": 190, "dog": 10}).warnings() == []


def test_labels_without_a_row_are_one_line():
    lacking = rows(train={"a": 1, "b": 0, "c": 3}, validation={"a": 0, "b": 1, "c": 0}, test={"a": 1, "b": 1, "c": 1})
    assert lacking.warnings() == [
        "params.yaml: prepare: 4 train rows for 3 labels, none for 'b'; 1 validation row for 3 labels, none for 'a' and 1 "
        "more; ask for more rows"
    ]


def test_more_rows_are_advised_only_if_the_data_has_more_pictures_of_the_label():
    lacking = {"a": 4, "b": 0}
    few = {"train": {"a": 9, "b": 2}, "validation": {"a": 3, "b": 1}, "test": lacking}
    more, none = (Report(rows=few, in_source={"a": 16, "b": number}).warnings()[0] for number in (4, 3))
    assert more.endswith("4 test rows for 2 labels, none for 'b'; ask for more rows")
    assert none.endswith("4 test rows for 2 labels, none for 'b'; the data has no more of them")


def test_labels_with_a_single_picture_are_one_line():
    assert report(in_source={"cat": 50, "dog": 1}).warnings() == [
        "there is a single picture of 'dog': train or test has none of it"
    ]


@pytest.mark.parametrize(
    ("split", "remedy"), [("train", "finetune.balance draws rare labels more often"), ("test", "see macro_f1, too")]
)
def test_an_unbalanced_split_is_one_line(split, remedy):
    assert rows(**{split: {"cat": 200, "dog": 10, "bird": 11}}).warnings() == [
        f"{split} is very unbalanced: 200 rows of 'cat', 10 of 'dog'; {remedy}"
    ]


def test_the_summary_names_only_what_there_is():
    assert report().summary() == "10 train, 10 validation, 10 test; 0 pictures left out"
    assert report(relabelled=("a", "b"), near_duplicates=4, test_changed=1).summary() == (
        "10 train, 10 validation, 10 test; 0 pictures left out; 2 relabelled; 4 near duplicates kept on one side; "
        "decisions changed 1 test row, which makes test another benchmark"
    )
