"""Calibration: what labelled validation samples teach about the probabilities, fitted after the label prior.

- temperature: the labels' probabilities become proportional to p ** (1 / temperature), where temperature minimises the
  log loss (C. Guo et al., ICML 2017). The most probable label does not change.
- bias: a bias for each label as well, added to log p / temperature. The biases are kept small by an L2 penalty, whose
  strength is chosen by cross-validation on the same samples. The most probable label can change.

The second is matrix scaling with a diagonal matrix of equal entries (Guo et al., there without a penalty).
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vlm.config.params import Calibrate

if TYPE_CHECKING:
    import numpy as np

# Penalties to choose from, in samples: half the penalty times the sum of squared biases is added to the summed loss.
# The last one leaves hardly any bias.
_PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0, 1000.0)
_FOLDS = 5


def fit(method: Calibrate, probabilities: Sequence[Sequence[float]], truth: Sequence[int]) -> dict[str, Any]:
    """The entries of an evaluation's test.json: calibrated_labels, temperature and, with method bias, bias and penalty.

    `probabilities` is (samples, labels), `truth` the column of each sample's true label; calibrated_labels is the
    number of samples. No entries without samples or with method none.
    """
    if method == "none" or not len(truth):
        return {}
    found: dict[str, Any] = {"calibrated_labels": len(truth)}
    if method == "temperature":
        return found | {"temperature": _temperature(probabilities, truth)}
    import numpy as np

    logits, column = _logarithms(probabilities), np.asarray(truth)
    penalty = _best_penalty(logits, column)
    temperature, bias = _fitted(logits, column, penalty)
    return found | {"temperature": temperature, "bias": bias.tolist(), "penalty": penalty}


def apply(probabilities: Sequence[Sequence[float]], fitted: Mapping[str, Any]) -> "np.ndarray":
    """(samples, labels): the calibrated probabilities; `fitted` is what `fit` returned."""
    import numpy as np
    from scipy.special import softmax

    bias = np.asarray(fitted.get("bias", 0.0))
    return softmax(_logarithms(probabilities) / fitted["temperature"] + bias, axis=1)


def _temperature(probabilities: Sequence[Sequence[float]], truth: Sequence[int]) -> float:
    import numpy as np
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    logits, rows = _logarithms(probabilities), np.arange(len(truth))

    def loss(log_temperature: float) -> float:
        return -float(log_softmax(logits / math.exp(log_temperature), axis=1)[rows, truth].mean())

    return math.exp(minimize_scalar(loss, bounds=(-5, 5), method="bounded").x)


def _best_penalty(logits: "np.ndarray", truth: "np.ndarray") -> float:
    """The penalty with the lowest log loss on samples that the fit has not seen; the strongest one on a tie.

    Every _FOLDS-th sample is in the same part: the splits are in random order.
    """
    import numpy as np
    from scipy.special import log_softmax

    part = np.arange(len(truth)) % _FOLDS
    losses = dict.fromkeys(_PENALTIES[::-1], 0.0)
    for penalty in losses:
        for fold in range(min(_FOLDS, len(truth))):
            seen, left = part != fold, part == fold
            temperature, bias = _fitted(logits[seen], truth[seen], penalty)
            scaled = log_softmax(logits[left] / temperature + bias, axis=1)
            losses[penalty] -= float(scaled[np.arange(left.sum()), truth[left]].sum())
    return min(losses, key=lambda penalty: losses[penalty])


def _fitted(logits: "np.ndarray", truth: "np.ndarray", penalty: float) -> tuple[float, "np.ndarray"]:
    """The temperature and biases with the lowest penalised loss, which is convex in 1 / temperature and biases."""
    import numpy as np
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    n, labels = logits.shape
    rows = np.arange(n)

    def loss(values: "np.ndarray") -> tuple[float, "np.ndarray"]:
        scale, bias = values[0], values[1:]
        log_p = log_softmax(scale * logits + bias, axis=1)
        residual = np.exp(log_p)
        residual[rows, truth] -= 1
        gradient = np.concatenate([[float((residual * logits).sum())], residual.sum(0) + penalty * bias])
        return -float(log_p[rows, truth].sum()) + penalty / 2 * float(bias @ bias), gradient

    bounds = [(math.exp(-5), math.exp(5)), *[(None, None)] * labels]
    start = np.concatenate([[1.0], np.zeros(labels)])
    best = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 1000}).x
    return 1 / float(best[0]), best[1:]


def _logarithms(probabilities: Sequence[Sequence[float]]) -> "np.ndarray":
    import numpy as np

    smallest = np.finfo(np.float64).tiny  # in place of probabilities that underflowed to 0
    return np.log(np.maximum(np.stack(list(probabilities)), smallest))
