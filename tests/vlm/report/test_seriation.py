import numpy as np

from tests.vlm.measuring.test_metrics import table
from vlm.measuring.answers import Predictions
from vlm.report import seriation


def test_labels_that_are_confused_stand_together():
    labels = list("abcdef")
    pairs = [("a", "d"), ("d", "a"), ("b", "e"), ("e", "b"), ("c", "f"), ("f", "c")]
    rows = [(label, label) for label in labels for _ in range(5)] + pairs + [("b", None)]
    order = seriation.order(Predictions("x", table(*rows), labels))
    assert sorted(order) == list(range(6))
    place = {labels[label]: position for position, label in enumerate(order)}
    assert all(abs(place[a] - place[b]) == 1 for a, b in pairs)


def test_probabilities_count_as_fractions_of_answers():
    rows = table(("a", "a"), ("b", "b"), ("b", "b"))
    rows["probabilities"] = [[0.7, 0.1, 0.2], [0.25, 0.5, 0.25], [0.0, 1.0, 0.0]]
    counts = seriation.confusions(Predictions("x", rows, ["a", "b", "c"]))
    assert np.allclose(counts, [[0.7, 0.1, 0.2], [0.25, 1.5, 0.25], [0, 0, 0]])


def test_few_labels_and_perfect_answers():
    for n in (1, 2, 3):
        labels = list("abc")[:n]
        assert sorted(seriation.order(Predictions("x", table(*[(one, one) for one in labels]), labels))) == list(
            range(n)
        )
