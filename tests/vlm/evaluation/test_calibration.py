import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from vlm.evaluation import calibration


def posteriors(rng, samples, labels=6, bias=0.0, sharpness=1.0):
    """(probabilities, truth): honest probabilities from which a bias was subtracted and that were then sharpened."""
    logits = rng.normal(size=(samples, labels)) * 2
    truth = [rng.choice(labels, p=row) for row in softmax(logits, axis=1)]
    return softmax(sharpness * (logits - bias), axis=1), truth


def log_loss(probabilities, truth):
    return -np.log(probabilities[np.arange(len(truth)), truth]).mean()


def test_the_temperature_is_the_sharpening():
    probabilities, truth = posteriors(np.random.default_rng(1), 4000, sharpness=3.0)
    found = calibration.fit("temperature", probabilities, truth)
    assert found == {"calibrated_labels": 4000, "temperature": pytest.approx(3, rel=0.05)}
    others, labels = posteriors(np.random.default_rng(2), 4000, sharpness=3.0)
    after = calibration.apply(others, found)
    assert log_loss(after, labels) < log_loss(others, labels)
    assert after.argmax(1).tolist() == others.argmax(1).tolist()


def test_a_bias_is_found_and_mends_the_answers():
    bias = np.array([2.0, 1.0, 0.0, 0.0, -1.0, -2.0])
    probabilities, truth = posteriors(np.random.default_rng(1), 4000, bias=bias, sharpness=2.0)
    found = calibration.fit("bias", probabilities, truth)
    assert found["temperature"] == pytest.approx(2, rel=0.1)
    assert found["bias"] == pytest.approx(bias, abs=0.25)
    others, labels = posteriors(np.random.default_rng(2), 4000, bias=bias, sharpness=2.0)
    right = (calibration.apply(others, found).argmax(1) == labels).mean()
    assert right > (others.argmax(1) == labels).mean() + 0.1


def test_the_penalty_is_strong_if_there_is_no_bias_and_few_samples():
    probabilities, truth = posteriors(np.random.default_rng(3), 60)
    few = calibration.fit("bias", probabilities, truth)
    assert few["penalty"] >= 3
    biased, truth = posteriors(np.random.default_rng(3), 600, bias=np.array([3.0, 0, 0, 0, 0, -3.0]))
    assert calibration.fit("bias", biased, truth)["penalty"] < few["penalty"]


def test_the_fit_is_the_minimum_of_the_penalised_loss():
    probabilities, truth = posteriors(np.random.default_rng(4), 100, bias=np.arange(6.0))
    found = calibration.fit("bias", probabilities, truth)

    def loss(scale, bias):
        log_p = log_softmax(scale * np.log(probabilities) + bias, axis=1)
        return -log_p[np.arange(100), truth].sum() + found["penalty"] / 2 * bias @ bias

    scale, bias = 1 / found["temperature"], np.array(found["bias"])
    least = loss(scale, bias)
    rng = np.random.default_rng(5)
    for _ in range(20):
        step = rng.normal(size=7) * 0.01
        assert loss(scale + step[0], bias + step[1:]) > least - 1e-4


@pytest.mark.parametrize("method", ["temperature", "bias"])
def test_few_samples_and_certain_answers_give_finite_values(method):
    found = calibration.fit(method, [[1.0, 0.0, 0.0]], [1])
    assert found["calibrated_labels"] == 1
    after = calibration.apply([[1.0, 0.0, 0.0]], found)
    assert np.isfinite(after).all()
    assert after.sum() == pytest.approx(1)


def test_nothing_is_fitted_without_samples_or_with_method_none():
    assert calibration.fit("bias", [], []) == calibration.fit("none", [[1.0]], [0]) == {}
