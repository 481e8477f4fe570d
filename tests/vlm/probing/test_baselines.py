import json

import numpy as np
import pandas as pd
import pytest

from vlm.config.events import Progress
from vlm.data import dataset
from vlm.probing import baselines, features, heads

TABLES = {
    "majority/test": "test",
    "probe_nearest/test": "test",
    "probe_linear/test": "test",
    "probe_linear/validation": "validation",
    "probe_linear/train": "train",
}


@pytest.fixture
def written(job, task, tmp_path):
    """Writes the baselines for invented features, in which every label has its own direction."""

    def write(name, unavailable=None, emit=lambda event: None):
        directory = tmp_path / name
        directory.mkdir()
        rng = np.random.default_rng(0)
        found = {}
        for split, data in job.splits.items():
            ids, labels = dataset.ids_and_labels(data)
            directions = np.eye(len(task.labels))[[task.labels.index(label) for label in labels]]
            found[split] = ids, directions + 0.1 * rng.normal(size=directions.shape)
        features.write(directory / "features.parquet", {} if unavailable else found)
        values = {"unavailable": unavailable} if unavailable else {}
        (directory / "features.json").write_text(json.dumps({"dimensions": 0 if unavailable else 31} | values))
        return directory, baselines.write(task, job.splits, directory, directory, emit)

    return write


def test_the_tables_have_the_form_of_a_models_answers(written, job, task):
    events = []
    directory, summary = written("a", emit=events.append)
    assert {f"{file.parent.name}/{file.stem}" for file in directory.glob("*/*.parquet")} == {*TABLES}
    for name, split in TABLES.items():
        table = pd.read_parquet(directory / f"{name}.parquet")
        ids, labels = dataset.ids_and_labels(job.splits[split])
        assert table["id"].tolist() == ids
        assert table["label"].tolist() == labels
        probabilities = np.stack(table["probabilities"])
        assert probabilities.sum(1) == pytest.approx(1)
        assert table["predicted"].tolist() == [task.labels[number] for number in probabilities.argmax(1)]
        assert table["text"].tolist() == [task.answer(label) for label in table["predicted"]]
        assert (directory / f"{name}.json").exists()
    chosen = {name: json.loads((directory / f"{name}.json").read_text()) for name in TABLES}
    assert chosen["majority/test"] == {}
    assert chosen["probe_linear/train"] == chosen["probe_linear/test"] | {"folds": 5}
    assert summary == (
        f"linear probe with C = {chosen['probe_linear/test']['inverse_penalty']:.2g}, nearest neighbours with k = "
        f"{chosen['probe_nearest/test']['neighbours']}, both chosen on 10 validation samples"
    )
    assert events[0] == Progress(0, heads.MOST_FITS, "fit")
    assert events[-1] == Progress(heads.MOST_FITS, heads.MOST_FITS, "fit")


def test_the_majority_class_is_the_most_frequent_label_of_train_with_the_labels_frequencies(written, job, task):
    directory, _ = written("a")
    _, labels = dataset.ids_and_labels(job.train)
    table = pd.read_parquet(directory / "majority/test.parquet")
    expected = pd.Series(labels).value_counts(normalize=True)
    (probabilities,) = set(map(tuple, table["probabilities"]))
    assert dict(zip(task.labels, probabilities, strict=True)) == {
        label: expected.get(label, 0.0) for label in task.labels
    }
    (predicted,) = set(table["predicted"])
    assert expected[predicted] == expected.max()


def test_the_probes_know_what_the_features_say(written, job):
    """For labels that occur in train, of which some have a single sample."""
    directory, _ = written("a")
    known = set(dataset.ids_and_labels(job.train)[1])
    for name in ("probe_nearest/test", "probe_linear/test", "probe_linear/validation"):
        table = pd.read_parquet(directory / f"{name}.parquet")
        table = table[table["label"].isin(known)]
        assert (table["label"] == table["predicted"]).all()
    table = pd.read_parquet(directory / "probe_linear/train.parquet")
    several = table["label"].duplicated(keep=False)
    assert (table["label"] == table["predicted"])[several].all()
    assert not (table["label"] == table["predicted"])[~several].any()  # out of sample, nobody knows these labels


def test_equal_features_give_equal_files(written):
    files = []
    for name in "ab":
        directory, _ = written(name)
        files.append({file.relative_to(directory): file.read_bytes() for file in directory.glob("*/*")})
    assert files[0] == files[1]


def test_without_features_the_probes_have_no_answers_and_say_why(written):
    directory, summary = written("a", unavailable="it has no tower")
    assert summary == (
        "the majority class is the only baseline, because the model gives no vision features: it has no tower"
    )
    for name in TABLES:
        table = pd.read_parquet(directory / f"{name}.parquet")
        assert len(table)
        if name != "majority/test":
            assert table["predicted"].isna().all()
            assert table["probabilities"].isna().all()
            assert json.loads((directory / f"{name}.json").read_text()) == {"unavailable": "it has no tower"}
