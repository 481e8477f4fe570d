import json

import numpy as np
import pytest

from vlm.config.errors import InputError
from vlm.data import dataset
from vlm.evaluation import prior
from vlm.evaluation.batching import decoded


def test_a_sample_has_no_row_twice_and_depends_on_the_seed_alone():
    rows = prior.sample(1000, 256, 1)
    assert len(set(rows)) == 256
    assert rows == sorted(rows) == prior.sample(1000, 256, 1) != prior.sample(1000, 256, 2)
    assert max(rows) < 1000
    assert abs(np.mean(rows) - 500) < 60  # from everywhere in the split, however it is ordered
    assert prior.sample(3, 256, 1) == [0, 1, 2]


def test_the_prior_is_the_mean_with_one_more_sample_of_equal_probabilities():
    posteriors = [[0.9, 0.1, 0.0], [0.5, 0.5, 0.0]]
    entry = prior.estimate("batch", posteriors)
    assert (entry["method"], entry["samples"]) == ("batch", 2)
    assert entry["probabilities"] == pytest.approx(np.array([1.4, 0.6, 0]) / 3 + 1 / 9, rel=1e-5)
    assert prior.estimate("batch", posteriors * 1000)["probabilities"] == pytest.approx([0.7, 0.3, 0.0], abs=1e-3)


def test_no_sample_is_a_one_line_error():
    with pytest.raises(InputError, match=r"data/train\.parquet: has no pictures to estimate the label prior from"):
        prior.estimate("batch", [])


def test_the_correction_divides_the_prior_out():
    entry = {"strength": 1.0, "probabilities": [0.5, 0.25, 0.25]}
    corrected = prior.apply([[0.6, 0.4, 0.0], [0.5, 0.25, 0.25]], prior.offsets(entry))
    assert corrected == pytest.approx(np.array([[0.6 / 2, 0.4, 0], [1 / 3, 1 / 3, 1 / 3]]) / [[0.7], [1]])
    halved = prior.apply([[0.6, 0.4, 0.0]], prior.offsets(entry | {"strength": 0.5}))[0]
    assert halved[0] / halved[1] == pytest.approx(0.6 / 0.4 * np.sqrt(0.25 / 0.5))
    assert prior.apply([[1.0]], prior.offsets({"strength": 1.0, "probabilities": [1.0]})).tolist() == [[1.0]]


def test_the_correction_mends_a_bias_that_all_answers_have():
    """Posteriors of a model that knows the label but multiplies each label's probability by its own factor."""
    rng = np.random.default_rng(0)
    truth = rng.integers(5, size=2000)
    logits = 2 * np.eye(5)[truth] + rng.normal(size=(2000, 5))
    biased = logits + np.array([2.0, 1.0, 0.0, -1.0, -2.0])
    posteriors = np.exp(biased) / np.exp(biased).sum(1, keepdims=True)
    entry = prior.estimate("batch", posteriors[:500])
    corrected = prior.apply(posteriors[500:], prior.offsets(entry)).argmax(1)
    plain, best = ((values[500:].argmax(1) == truth[500:]).mean() for values in (posteriors, logits))
    assert (corrected == truth[500:]).mean() > best - 0.06 > plain + 0.1


def test_blank_pictures_have_the_median_size_and_show_nothing(make_split, tmp_path):
    train = make_split("train", 3)
    prior.write_blank(tmp_path / "a.parquet", train, [0, 1, 2], "Audi", seed=5)
    prior.write_blank(tmp_path / "b.parquet", train, [2], "Audi", seed=5)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    rows = dataset.Reader(tmp_path / "a.parquet").rows(range(dataset.count(tmp_path / "a.parquet")))
    pictures = [np.asarray(decoded(row.image)) for row in rows]
    (size,) = {picture.shape[1::-1] for picture in pictures}
    assert size == dataset.image_sizes(train)[0]
    assert [int(picture.mean()) for picture in pictures[:3]] == [0, 128, 255]
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)


def test_an_entry_names_what_it_belongs_to(task, tiny, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    entry = prior.belongs_to(task, tiny, str(adapter))
    assert prior.mismatch(entry, task, tiny, str(adapter)) is None
    assert prior.mismatch(entry, task, tiny, None) == "adapter"
    assert prior.mismatch(entry, task, tiny.model_copy(update={"revision": "other"}), str(adapter)) == "revision"
    shorter = task.model_copy(update={"labels": task.labels[:-1]})
    assert prior.mismatch(entry, shorter, tiny, str(adapter)) == "question"
    (adapter / "adapter_model.safetensors").write_bytes(b"others")
    assert prior.mismatch(entry, task, tiny, str(adapter)) == "adapter"


def test_reading_a_file(task, tiny, tmp_path):
    file = tmp_path / "structured_eval.json"
    with pytest.raises(InputError, match=r"structured_eval\.json: no such file"):
        prior.read(file)
    for wrong in (b"{", b"\xff"):
        file.write_bytes(wrong)
        with pytest.raises(InputError, match=r"structured_eval\.json: is no JSON file"):
            prior.read(file)
    file.write_text('{"image_tokens": 16}')
    assert prior.read(file) is None
    entry = prior.estimate("batch", [[0.5, 0.5]])
    file.write_text(json.dumps({"prior": entry}))
    with pytest.raises(InputError, match=r"structured_eval\.json: prior: adapter is missing"):
        prior.read(file)
    entry |= prior.belongs_to(task, tiny, None)
    file.write_text(json.dumps({"prior": entry}))
    assert prior.read(file) == entry
