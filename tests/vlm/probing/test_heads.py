import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from vlm.probing import heads
from vlm.probing.heads import Samples

LABELS = 4


def ignore():
    """For `fitted`."""


def blobs(count, spread, seed=0, labels=LABELS):
    """Samples in `labels` normally distributed blobs around fixed centres; the last of LABELS + 1 labels never occurs."""
    centres = np.random.default_rng(42).normal(size=(labels, 16))
    rng = np.random.default_rng(seed)
    truth = rng.integers(labels, size=count)
    return Samples((centres[truth] + spread * rng.normal(size=(count, 16))).astype(np.float32), truth, LABELS + 1)


def right(samples, probabilities):
    return (probabilities.argmax(1) == samples.truth).mean()


@pytest.mark.parametrize("head", ["nearest", "linear"])
def test_probabilities_are_over_all_labels_and_right_for_what_can_be_told_apart(head):
    train, validation, test = blobs(200, 0.3), blobs(40, 0.3, 1), blobs(100, 0.3, 2)
    classify = heads.nearest(train, validation)[1] if head == "nearest" else heads.linear(train, 1.0)
    found = classify(test.features)
    assert found.shape == (100, LABELS + 1)
    assert found.sum(1) == pytest.approx(1, abs=1e-12)
    assert (found[:, :LABELS] > 0).all()
    assert (found[:, LABELS] == 0).all()
    assert right(test, found) == 1


def test_frequencies_of_labels():
    assert heads.frequencies(np.array([2, 0, 2, 2]), 4).tolist() == [0.25, 0, 0.75, 0]


def test_several_neighbours_outvote_a_wrong_label():
    train, validation, test = blobs(400, 0.5), blobs(200, 0.5, 1), blobs(200, 0.5, 2)
    wrong = np.random.default_rng(0).random(400) < 0.2
    noisy = Samples(train.features, np.where(wrong, (train.truth + 1) % LABELS, train.truth), train.labels)
    k, classify = heads.nearest(noisy, validation)
    assert k > 1
    assert right(test, classify(test.features)) > 0.97
    single = KNeighborsClassifier(1, metric="cosine").fit(noisy.features, noisy.truth)
    assert single.score(test.features, test.truth) < 0.9


def test_the_chosen_penalty_fits_validation_better_than_extreme_ones():
    train, validation = blobs(60, 1.5), blobs(200, 1.5, 1)
    fits = []
    chosen = heads.best_inverse_penalty(train, validation, lambda: fits.append(1))
    assert len(fits) < heads.MOST_FITS - heads.FOLDS  # the search has ended early
    losses = [validation.log_loss(heads.linear(train, c)(validation.features)) for c in (1e-5, chosen, 1e3)]
    assert losses[1] < min(losses[0], losses[2])


def test_features_of_different_scales_count_alike():
    train, test = blobs(200, 0.5), blobs(100, 0.5, 1)
    scale = 10.0 ** np.arange(-8, 8)
    scaled = Samples(train.features * scale, train.truth, train.labels)
    assert np.allclose(
        heads.linear(train, 0.1)(test.features), heads.linear(scaled, 0.1)(test.features * scale), atol=1e-3
    )


def test_cross_fitted_probabilities_are_out_of_sample():
    """Labels that have nothing to do with the features are learned by heart in the sample, and not outside of it."""
    rng = np.random.default_rng(0)
    noise = Samples(rng.normal(size=(100, 200)), rng.integers(LABELS, size=100), LABELS)
    assert right(noise, heads.linear(noise, 1000.0)(noise.features)) == 1
    found = heads.cross_fitted(noise, 1000.0, ignore)
    assert found.sum(1) == pytest.approx(1)
    assert right(noise, found) < 0.45


def test_cross_fitting_works_with_labels_that_have_fewer_samples_than_folds():
    samples = blobs(60, 0.3)
    rare = Samples(samples.features, samples.truth.copy(), samples.labels)
    rare.truth[7] = LABELS  # the only one
    found = heads.cross_fitted(rare, 1.0, ignore)
    assert found.sum(1) == pytest.approx(1)
    assert found[7, LABELS] == 0
    assert (found[:, LABELS] > 0).sum() == 48  # in the folds that are fitted to the sample


@pytest.mark.parametrize("count", [2, 3])
def test_cross_fitting_works_with_fewer_samples_than_folds(count):
    samples = blobs(count, 0.3)
    assert heads.cross_fitted(samples, 1.0, ignore).sum(1) == pytest.approx(1)


def test_a_single_label_is_always_the_answer():
    only = Samples(np.random.default_rng(0).normal(size=(10, 3)), np.full(10, 1), 2)
    assert heads.linear(only, 1.0)(only.features).tolist() == [[0, 1]] * 10


def test_folds_are_equally_large_in_all_and_for_each_label():
    truth = np.repeat([0, 1, 2], [20, 7, 2])
    fold = heads.folds(truth, 5)
    for rows in (slice(None), truth == 0, truth == 1, truth == 2):
        counts = np.bincount(fold[rows], minlength=5)
        assert counts.max() - counts.min() <= 1
    assert (fold == heads.folds(truth, 5)).all()
    assert fold[:20].tolist() != sorted(fold[:20])  # in no order that the data may have


def test_the_penalty_by_cross_validation_is_the_one_that_fits_samples_best_that_it_has_not_seen():
    def loss(samples, inverse_penalty):
        return samples.log_loss(heads.cross_fitted(samples, inverse_penalty))

    noisy, clear = blobs(60, 3.0), blobs(60, 1.2)
    chosen = [heads.cross_validated_inverse_penalty(samples) for samples in (noisy, clear)]
    assert chosen[0] < chosen[1]
    for samples, best in zip((noisy, clear), chosen, strict=True):
        assert loss(samples, best) <= min(loss(samples, best / 10**0.5), loss(samples, best * 10**0.5))
