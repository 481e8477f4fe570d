from tests.vlm.sources.pets import FOLDER, task
from vlm.sources import checks
from vlm.sources.near_duplicates import Swallowed
from vlm.sources.pool import Pool


def test_groups_of_the_sources_own_test_split_that_are_elsewhere_too_are_a_warning():
    apart = {"train": {"a", "b"}, "validation": {"c"}, "test": {"d"}}
    assert checks.shared_groups(apart) == []
    assert checks.shared_groups(apart | {"test": {"c", "b", "d"}}) == [
        "columns.group: the source's test split shares 2 groups with the other splits, such as 'b'; `source.test: null` "
        "holds test out of train, group by group"
    ]


def test_of_several_classes_that_look_alike_the_worst_is_named():
    assert checks.alike(FOLDER, []) == []
    (line,) = checks.alike(FOLDER, [Swallowed("cat", 6, 10), Swallowed("dog", 9, 10), Swallowed("owl", 7, 10)])
    assert line.startswith(
        "near duplicates: 9 of 10 pictures of 'dog' (and most of 2 other labels) look alike to the perceptual hash"
    )


def test_columns_group_is_advised_only_where_a_task_can_have_it():
    found = [Swallowed("cat", 10, 12)]
    for source in ({"hub": "org/pets"}, {"folder": "pets", "metadata": "labels.csv"}):
        (line,) = checks.alike(task(source), found)
        assert line.endswith("like other pictures; columns.group keeps together what belongs together")
    (line,) = checks.alike(FOLDER, found)
    assert line.endswith("so they are split like other pictures")


def test_pictures_without_a_group_are_enough_for_any_number_of_splits():
    """A picture without a group belongs with no other one, so there may be as many units as pictures."""

    def warnings(groups: list[str | None]) -> list[str]:
        labels = ["cat"] * len(groups) + ["dog"] * 3
        ids = [str(i) for i in range(len(labels))]
        pool = Pool(ids, labels, [range(len(ids))], lambda shard: iter(()), groups=[*groups, "x", "y", "z"])
        return checks.few_groups(FOLDER, pool, 3)

    assert warnings(["a", "a", None, None]) == []
    assert warnings(["a", "a", "b"]) == ["columns.group: 'cat' has pictures of 2 groups, too few for 3 splits"]
