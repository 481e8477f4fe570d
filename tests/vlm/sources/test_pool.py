from collections import Counter

import pytest

from tests.vlm.sources.pets import task
from vlm.config.decisions import Decisions
from vlm.config.errors import InputError
from vlm.sources.deck import Deck
from vlm.sources.pictures import Unreadable
from vlm.sources.pool import make_pool

OF = task({"hub": "org/pets"})
NAMES = ["cat", "bird", "dog", None, "bird", "bird", "dog", "cat"]
SHARDS = [range(0, 4), range(4, 6), range(6, 8)]
IDS = [f"train-{row}" for row in range(len(NAMES))]


def refuse() -> bytes:
    raise Unreadable("is never a picture")


def test_a_row_without_a_label_is_one_line():
    with pytest.raises(InputError) as caught:
        make_pool(OF, IDS[3:], [None, None, "cat", "dog", "cat"], [range(5)], lambda shard: iter(()))
    assert str(caught.value) == (
        "configs/tasks/pets.yaml: columns.label: label: 2 of the data's pictures have no label (train-3 is one); "
        "`other_classes: leave_out` leaves such pictures out"
    )


def test_several_unknown_classes_are_counted():
    with pytest.raises(
        InputError, match=r"'bird', the label of 3 of the data's pictures .*, is missing \(and 1 more\); add"
    ):
        make_pool(OF, IDS, NAMES, SHARDS, lambda shard: iter(()))


def test_files_that_hold_only_other_classes_are_not_fetched():
    """The second of three files has only birds."""
    fetched = Counter()

    def readers(shard: int):
        fetched[shard] += 1
        return iter([refuse] * len(SHARDS[shard]))

    pool = make_pool(task({"hub": "org/pets"}, other_classes="leave_out"), IDS, NAMES, SHARDS, readers)
    assert pool.labels == ["cat", None, "dog", None, None, None, "dog", "cat"]
    assert pool.labelled == 4
    deck = Deck("train", pool, ("cat", "dog"), 1, lambda event: None, decisions=Decisions(), several=True)
    with pytest.raises(InputError, match="all rows are asked for, 0 are available"):
        deck.draw("train", None, held_out=False)
    assert fetched == {0: 1, 2: 1}
    assert Counter(skipped.kind for skipped in deck.skipped) == {"unreadable": 4, "other": 4}
    assert {skipped.id: skipped.reason for skipped in deck.skipped if skipped.kind == "other"} == {
        "train-1": "is labelled bird", "train-3": "has no label", "train-4": "is labelled bird", "train-5": "is labelled bird",
    }  # fmt: skip
