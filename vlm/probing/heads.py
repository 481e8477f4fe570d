"""The classifiers on pooled features: nearest neighbours and multinomial logistic regression (a linear probe).

A label that does not occur in training gets probability 0 from the linear probe. What each of them is free to choose is
chosen by the log loss on validation, which is smoother than accuracy where validation is small. Their probabilities on
validation itself are therefore slightly optimistic; those on test, and `cross_fitted` ones on train, are not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from sklearn.base import ClassifierMixin

# The numbers of neighbours, and the values of scikit-learn's C, the inverse strength of the L2 penalty, to choose from
_NEIGHBOURS = (1, 2, 5, 10, 20, 50, 100)
_INVERSE_PENALTIES = tuple(10.0 ** (exponent / 2) for exponent in range(-10, 7))
_WORSE = 2  # values of C in a row that fit validation worse than the best one end the search
_TEMPERATURE = 0.07  # of the neighbours' votes, as in M. Caron et al., ICCV 2021 (DINO)
FOLDS = 5
MOST_FITS = len(_INVERSE_PENALTIES) + FOLDS  # of linear probes, for a progress bar


@dataclass(frozen=True)
class Samples:
    """Features, (samples, dimensions), with the truth, (samples,): indices of the task's labels, `labels` in number."""

    features: "np.ndarray"
    truth: "np.ndarray"
    labels: int

    def at(self, rows: "np.ndarray") -> "Samples":
        return Samples(self.features[rows], self.truth[rows], self.labels)

    def log_loss(self, probabilities: "np.ndarray") -> float:
        """The mean negative log-likelihood of the truth in nats, given (samples, labels) probabilities."""
        import numpy as np

        of_truth = probabilities[np.arange(len(self.truth)), self.truth]
        return float(-np.log(np.maximum(of_truth, np.finfo(float).eps)).mean())


def frequencies(truth: "np.ndarray", labels: int) -> "np.ndarray":
    """The fraction of each label in `truth`, (labels,). The most frequent one is the answer of the majority class."""
    import numpy as np

    return np.bincount(truth, minlength=labels) / len(truth)


def nearest(train: Samples, validation: Samples) -> "tuple[int, Callable[[np.ndarray], np.ndarray]]":
    """Chooses k; returns it and a function from features to probabilities, (samples, labels).

    The k training samples with the most similar features (by the cosine) vote with weights exp(similarity / 0.07). One
    more vote is divided as the labels are in training, so that no probability is 0 only because k is small.
    """
    import numpy as np
    from sklearn.neighbors import NearestNeighbors
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train.features)
    most = min(max(_NEIGHBOURS), len(train.truth))
    search = NearestNeighbors(n_neighbors=most, metric="cosine").fit(scaler.transform(train.features))
    prior = frequencies(train.truth, train.labels)

    def votes(features: "np.ndarray", k: int) -> "np.ndarray":
        distances, rows = search.kneighbors(scaler.transform(features), k)
        weights = np.exp((distances[:, :1] - distances) / _TEMPERATURE)  # relative to the nearest one
        shares = np.zeros((len(features), train.labels))
        np.add.at(shares, (np.arange(len(features))[:, None], train.truth[rows]), weights)
        return (k * shares / shares.sum(1, keepdims=True) + prior) / (k + 1)

    choices = [k for k in _NEIGHBOURS if k <= most]
    k = min(choices, key=lambda k: validation.log_loss(votes(validation.features, k)))
    return k, lambda features: votes(features, k)


def linear(train: Samples, inverse_penalty: float) -> "Callable[[np.ndarray], np.ndarray]":
    """Fits logistic regression to standardised features; returns a function from features to (samples, labels)."""
    import warnings

    import numpy as np

    model = _classifier(inverse_penalty, several=len(set(train.truth.tolist())) > 1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)  # there may be many labels
        model.fit(train.features, train.truth)

    def probabilities(features: "np.ndarray") -> "np.ndarray":
        found = np.zeros((len(features), train.labels))
        found[:, model.classes_] = model.predict_proba(features)
        return found / found.sum(1, keepdims=True)  # for float32 features their sum has the precision of float32

    return probabilities


def _classifier(inverse_penalty: float, several: bool) -> "ClassifierMixin":
    from sklearn.dummy import DummyClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if not several:  # logistic regression refuses a single class
        return DummyClassifier(strategy="prior")
    return make_pipeline(StandardScaler(), LogisticRegression(C=inverse_penalty, max_iter=5000))


def best_inverse_penalty(train: Samples, validation: Samples, fitted: Callable[[], None]) -> float:
    """The value of C with the lowest log loss on validation. Calls `fitted` after every fit."""

    def loss(inverse_penalty: float) -> float:
        found = validation.log_loss(linear(train, inverse_penalty)(validation.features))
        fitted()
        return found

    return _search(loss)


def cross_validated_inverse_penalty(samples: Samples) -> float:
    """The value of C with the lowest log loss on `samples` themselves, `cross_fitted`."""
    return _search(lambda inverse_penalty: samples.log_loss(cross_fitted(samples, inverse_penalty)))


def _search(loss: Callable[[float], float]) -> float:
    """The value of C with the lowest loss, searched from strong to weak penalties.

    The loss falls and then rises as the penalty gets weaker, so the search ends soon after the lowest one: the weakest
    penalties take the longest to fit.
    """
    losses: list[float] = []
    for inverse_penalty in _INVERSE_PENALTIES:
        losses.append(loss(inverse_penalty))
        if len(losses) - 1 - losses.index(min(losses)) >= _WORSE:
            break
    return _INVERSE_PENALTIES[losses.index(min(losses))]


def cross_fitted(train: Samples, inverse_penalty: float, fitted: Callable[[], None] = lambda: None) -> "np.ndarray":
    """Out-of-sample probabilities, (samples, labels), for the training split itself.

    Each of FOLDS folds is answered by a linear probe that is fitted to the others. A label of which another fold has no
    sample, such as one with a single sample, gets probability 0 there. Calls `fitted` after every fit.
    """
    import numpy as np

    fold = folds(train.truth, FOLDS)
    found = np.zeros((len(train.truth), train.labels))
    for number in range(FOLDS):
        inside, outside = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
        if len(inside) and len(outside):
            found[inside] = linear(train.at(outside), inverse_penalty)(train.features[inside])
        fitted()
    return found


def folds(truth: "np.ndarray", count: int) -> "np.ndarray":
    """The fold, 0 to count - 1, of every sample. Sizes differ by one at most, in all and within each label.

    Unlike scikit-learn's StratifiedKFold it accepts labels with fewer samples than folds.
    """
    import numpy as np

    order = np.random.default_rng(0).permutation(len(truth))
    order = order[np.argsort(truth[order], kind="stable")]  # by label, in random order within it
    fold = np.empty(len(truth), int)
    fold[order] = np.arange(len(truth)) % count
    return fold
