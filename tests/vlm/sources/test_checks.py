from vlm.sources import checks
from vlm.sources.near_duplicates import Swallowed


def test_groups_of_the_sources_own_test_split_that_are_elsewhere_too_are_a_warning():
    apart = {"train": {"a", "b"}, "validation": {"c"}, "test": {"d"}}
    assert checks.shared_groups(apart) == []
    assert checks.shared_groups(apart | {"test": {"c", "b", "d"}}) == [
        "columns.group: the source's test split shares 2 groups with the other splits, such as 'b'; `source.test: null` "
        "holds test out of train, group by group"
    ]


def test_of_several_classes_that_look_alike_the_worst_is_named():
    assert checks.alike([]) == []
    (line,) = checks.alike([Swallowed("cat", 6, 10), Swallowed("dog", 9, 10), Swallowed("owl", 7, 10)])
    assert line.startswith(
        "near duplicates: 9 of 10 pictures of 'dog' (and most of 2 other labels) look alike to the perceptual hash"
    )
