"""Temperature scaling: one number, fitted on validation, that corrects the model's confidence.

The labels' probabilities become proportional to p ** (1 / temperature), where temperature minimises the log loss on the
validation split (C. Guo et al., ICML 2017). The most probable label does not change.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def fit(probabilities: Sequence[Sequence[float]], truth: Sequence[int]) -> float:
    """The temperature for `probabilities`, (samples, labels); `truth` is the column of each sample's true label."""
    import numpy as np
    from scipy.optimize import minimize_scalar

    rows = np.arange(len(truth))

    def loss(log_temperature: float) -> float:
        return -float(_scaled_logarithms(probabilities, math.exp(log_temperature))[rows, truth].mean())

    return math.exp(minimize_scalar(loss, bounds=(-5, 5), method="bounded").x)


def apply(probabilities: Sequence[Sequence[float]], temperature: float) -> "np.ndarray":
    """(samples, labels): the probabilities at a temperature."""
    import numpy as np

    return np.exp(_scaled_logarithms(probabilities, temperature))


def _scaled_logarithms(probabilities: Sequence[Sequence[float]], temperature: float) -> "np.ndarray":
    import numpy as np
    from scipy.special import log_softmax

    smallest = np.finfo(np.float64).tiny  # in place of probabilities that underflowed to 0
    return log_softmax(np.log(np.maximum(np.stack(list(probabilities)), smallest)) / temperature, axis=1)
