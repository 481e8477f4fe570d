import hashlib
from collections import Counter
from itertools import pairwise

import pytest

from vlm.sources import splits
from vlm.sources.pictures import Inspection
from vlm.sources.splits import Picture

LABELS = ("often", "seldom", "once")


def picture(index: int, label: str, content: str | None = None) -> Picture:
    digest = hashlib.sha256((content or f"{label} {index}").encode()).digest()
    return Picture(index, f"{index:03d}.png", label, Inspection(digest, digest, True))


def pool(often: int = 70, seldom: int = 29, once: int = 1) -> list[Picture]:
    labels = ["often"] * often + ["seldom"] * seldom + ["once"] * once
    return [picture(index, label) for index, label in enumerate(labels)]


def draw(pictures: list[Picture], wanted: int, seed: int) -> list[Picture]:
    counts = Counter(picture.label for picture in pictures)
    return splits.draw(pictures, splits.quotas({label: counts[label] for label in LABELS}, wanted), seed)


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
    kept, skipped = splits.without_copies([first, copy, other], {})
    assert kept == [first, other]
    assert [(s.id, s.kind, s.reason) for s in skipped] == [("001.png", "duplicate", "is a copy of 000.png")]


def test_no_copy_is_kept_if_their_labels_differ_and_the_reason_names_the_other_file():
    copies = [picture(0, "often", "x"), picture(1, "once", "x"), picture(3, "once", "x")]
    kept, skipped = splits.without_copies([*copies, picture(2, "once")], {})
    assert [p.index for p in kept] == [2]
    assert [(s.id, s.kind, s.reason) for s in skipped] == [
        ("000.png", "conflict", "is labelled often, but its copy 001.png is labelled once (and 1 more)"),
        ("001.png", "conflict", "is labelled once, but its copy 000.png is labelled often"),
        ("003.png", "conflict", "is labelled once, but its copy 000.png is labelled often"),
    ]


@pytest.mark.parametrize(("label", "more"), [("often", ""), ("once", ", which is labelled often")])
def test_copies_of_a_picture_elsewhere_are_not_kept(label, more):
    test, train = picture(7, "often", "x"), picture(0, label, "x")
    kept, skipped = splits.without_copies([train], {test.inspection.pixels_digest: test})
    assert not kept and skipped[0].reason == f"is a copy of 007.png{more}"
