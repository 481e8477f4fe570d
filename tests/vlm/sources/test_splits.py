import hashlib
from collections import Counter
from itertools import pairwise

import pytest

from vlm.config.decisions import Decisions
from vlm.sources import splits
from vlm.sources.pictures import Inspection
from vlm.sources.splits import Picture

LABELS = ("often", "seldom", "once")
NONE = Decisions()


def picture(index: int, label: str, content: str | None = None) -> Picture:
    digest = hashlib.sha256((content or f"{label} {index}").encode()).digest()
    return Picture(index, f"{index:03d}.png", label, Inspection(digest, digest, True))


def pool(often: int = 70, seldom: int = 29, once: int = 1) -> list[Picture]:
    labels = ["often"] * often + ["seldom"] * seldom + ["once"] * once
    return [picture(index, label) for index, label in enumerate(labels)]


def draw(
    pictures: list[Picture], wanted: int, seed: int, groups: dict[int, str] | None = None, last=True
) -> list[Picture]:
    """Draws `wanted` pictures; `groups` are by the index of a picture."""
    counts = Counter(picture.label for picture in pictures)
    of_all = [groups.get(index) for index in range(1 + max(p.index for p in pictures))] if groups else None
    quota = splits.quotas({label: counts[label] for label in LABELS}, wanted)
    return splits.draw(pictures, quota, seed, splits.units(pictures, of_all, {}), last)


@pytest.mark.parametrize("wanted", [1, 7, 10, 50, 99, 100])
def test_draw_gives_as_many_pictures_as_wanted_with_labels_in_proportion(wanted):
    drawn = draw(pool(), wanted, seed=1)
    counts = Counter(p.label for p in drawn)
    assert len({p.index for p in drawn}) == wanted
    assert all(abs(counts[label] - wanted * size / 100) < 1 for label, size in zip(LABELS, (70, 29, 1), strict=True))


def test_draw_depends_on_the_pictures_and_the_seed_and_not_on_their_order():
    drawn = draw(pool(), 30, seed=1)
    assert draw(pool()[::-1], 30, seed=1) == drawn
    assert draw(pool(), 30, seed=2) != drawn


def test_draw_mixes_the_labels():
    labels = [p.label for p in draw(pool(50, 50, 0), 100, seed=1)]
    assert 30 < sum(a != b for a, b in pairwise(labels)) < 70


def test_adding_pictures_to_the_source_changes_little_of_what_is_drawn():
    before = {p.id for p in draw(pool(500, 500, 0), 200, seed=1)}
    more = [*pool(500, 500, 0), *(picture(index, "often") for index in range(2000, 2020))]
    assert len(before & {p.id for p in draw(more, 200, seed=1)}) >= 190


def test_the_first_of_several_copies_is_kept():
    first, copy, other = picture(0, "often", "x"), picture(1, "often", "x"), picture(2, "often", "y")
    kept, skipped = splits.without_copies([first, copy, other], {}, NONE)
    assert kept == [first, other]
    assert [(s.id, s.kind, s.reason) for s in skipped] == [("001.png", "duplicate", "is a copy of 000.png")]


def test_no_copy_is_kept_if_their_labels_differ_and_the_reason_names_the_other_file():
    copies = [picture(0, "often", "x"), picture(1, "once", "x"), picture(3, "once", "x")]
    kept, skipped = splits.without_copies([*copies, picture(2, "once")], {}, NONE)
    assert [p.index for p in kept] == [2]
    assert [(s.id, s.kind, s.reason) for s in skipped] == [
        ("000.png", "conflict", "is labelled often, but its copy 001.png is labelled once (and 1 more)"),
        ("001.png", "conflict", "is labelled once, but its copy 000.png is labelled often"),
        ("003.png", "conflict", "is labelled once, but its copy 000.png is labelled often"),
    ]


@pytest.mark.parametrize(("label", "more"), [("often", ""), ("once", ", which is labelled often")])
def test_copies_of_a_picture_elsewhere_are_not_kept(label, more):
    test, train = picture(7, "often", "x"), picture(0, label, "x")
    kept, skipped = splits.without_copies([train], {test.inspection.pixels_digest: test}, NONE)
    assert not kept and skipped[0].reason == f"is a copy of 007.png{more}"


def decided(**decisions) -> Decisions:
    return Decisions.model_validate(decisions)


@pytest.mark.parametrize(
    ("decisions", "kept"),
    [
        (decided(exclude={"001.png": "is often seen"}), ["000.png"]),
        (decided(exclude={"000.png": "is seen once"}), ["001.png"]),
        (decided(relabel={"001.png": {"to": "often", "reason": "is often seen"}}), ["000.png"]),
        (decided(relabel={"001.png": {"to": "seldom", "reason": "is seen seldom"}}), []),
        (decided(exclude={"000.png": "?", "001.png": "?"}), []),
    ],
)
def test_decisions_settle_a_conflict_of_copies(decisions, kept):
    copies = [picture(0, "often", "x"), picture(1, "once", "x")]
    found, skipped = splits.without_copies(copies, {}, decisions)
    assert [p.id for p in found] == kept
    assert len(skipped) == 2 - len(kept)


# Units


def test_a_unit_is_a_group_or_a_cluster_and_what_they_have_in_common():
    pictures = [picture(index, "often") for index in range(7)]
    groups = ["a", "a", "b", None, None, None, "c"]
    units = splits.units(pictures, groups, {1: 0, 2: 0, 3: 1, 4: 1})
    assert units[0] == units[1] == units[2]  # 1 and 2 are near duplicates, 0 is in the group of 1
    assert units[3] == units[4]
    assert len(set(units.values())) == 4
    assert units[5] == pictures[5].inspection.bytes_digest
    assert splits.units(pictures[::-1], groups, {4: 7, 3: 7, 2: 9, 1: 9}) == units


@pytest.mark.parametrize("seed", range(20))
def test_what_fits_is_drawn_whole(seed):
    """Pairs, triples and single pictures: no unit is cut."""
    pictures = pool(60, 0, 0)
    groups = {index: f"{index // 3 if index < 30 else 100 + index // 2}" for index in range(50)}
    drawn = {p.index for p in draw(pictures, 12, seed, groups, last=False)}
    assert len(drawn) == 12
    for group in set(groups.values()):
        members = {index for index, name in groups.items() if name == group}
        assert members <= drawn or not members & drawn


def test_a_unit_that_is_too_large_is_cut_only_if_nothing_else_is_left():
    pictures = pool(20, 0, 0)
    groups = dict.fromkeys(range(15), "large")
    assert {p.index for p in draw(pictures, 5, 1, groups, last=False)} == {15, 16, 17, 18, 19}
    drawn = {p.index for p in draw(pictures, 7, 1, groups, last=False)}
    assert {15, 16, 17, 18, 19} < drawn and len(drawn) == 7


def test_the_last_split_grows_without_losing_a_picture():
    groups = {index: str(index // 4) for index in range(100)}
    assert {p.id for p in draw(pool(), 30, 1, groups)} < {p.id for p in draw(pool(), 50, 1, groups)}


def test_large_groups_are_drawn_no_more_often_than_their_size_says():
    """50 pictures alone and ten groups of five: about half of what is drawn first is of each."""
    groups = {index: str(index // 5) for index in range(50)}
    drawn = [p.index < 50 for seed in range(200) for p in draw(pool(100, 0, 0), 20, seed, groups, last=False)]
    assert 0.44 < sum(drawn) / len(drawn) < 0.56
