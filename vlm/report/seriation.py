"""The order of the labels in the confusion matrix."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from vlm.measuring.answers import Predictions


def order(predictions: "Predictions") -> list[int]:
    """The places of the labels in an order in which labels that are confused with each other are neighbours.

    Average-linkage clustering of the confusion rates of both directions, with the leaves in the order of the least
    distance between neighbours (Z. Bar-Joseph, D. Gifford, T. Jaakkola, "Fast optimal leaf ordering for hierarchical
    clustering", Bioinformatics 17 (2001), S22-S29). About a second with 1,000 labels.
    """
    import numpy as np
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    n = len(predictions.labels)
    if n < 3:
        return list(range(n))
    counts = confusions(predictions)
    rates = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    similarity = rates + rates.T
    np.fill_diagonal(similarity, 0)
    distance = similarity.max() - similarity
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), "average", optimal_ordering=True)
    return leaves_list(tree).tolist()


def confusions(predictions: "Predictions") -> "np.ndarray":
    """An array of shape (labels, labels): how often each label (row) gets which answer (column).

    Probabilities, if there are any, count as fractions of answers: they show which labels look alike to a model even
    where it makes no mistake. Answers that are no label are left out.
    """
    import numpy as np

    place = {label: number for number, label in enumerate(predictions.labels)}
    counts = np.zeros((len(place), len(place)))
    rows = predictions.frame["label"].map(place).to_numpy()
    if predictions.has_probabilities:
        np.add.at(counts, rows, np.stack(predictions.frame["probabilities"].to_list()))
        return counts
    for row, answer in zip(rows, predictions.frame["predicted"], strict=True):
        if isinstance(answer, str):
            counts[row, place[answer]] += 1
    return counts
