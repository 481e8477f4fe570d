import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.vlm.audit.samples import encoded, write_splits
from vlm.audit import label_errors
from vlm.audit.audit import SPLITS
from vlm.config.errors import InputError
from vlm.data import json_files
from vlm.data.predictions import path
from vlm.probing import features

LABELS = ("cat", "dog", "fox", "owl")
PICTURE = encoded(Image.new("RGB", (8, 8)))
ROWS = {"train": 200, "validation": 60, "test": 100}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def wrong():
    """Writes splits in which every twentieth label is wrong; the ids of these samples."""
    truth, rows, wrong = {}, {}, set()
    for split, count in ROWS.items():
        truth[split] = [LABELS[i % 4] for i in range(count)]
        given = [LABELS[(i + 1) % 4] if i % 20 == 0 else LABELS[i % 4] for i in range(count)]
        rows[split] = [(f"{split}-{i}", label, PICTURE) for i, label in enumerate(given)]
        wrong |= {f"{split}-{i}" for i in range(0, count, 20)}
    write_splits(**rows)
    return wrong


def write_predictions(name, split, accuracy=0.97, probabilities=True, labels=LABELS):
    """Answers of a model that is right about the true label with this accuracy, and less sure if it is wrong."""
    rng = np.random.default_rng([len(name), len(split)])
    rows = []
    for id_, label in zip(*label_errors.dataset.ids_and_labels(SPLITS[split]), strict=True):
        truth = int(id_.rpartition("-")[2]) % 4
        right = rng.random() < accuracy
        best = truth if right else (truth + rng.integers(1, 4)) % 4
        sure = 0.7 if right else 0.3
        p = rng.dirichlet(np.ones(len(labels))) * (1 - sure)
        p[best] += sure
        rows.append((id_, label, labels[best], labels[best], list(p) if probabilities else None))
    file = path(name, split)
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows, columns=["id", "label", "text", "predicted", "probabilities"])
    table.to_parquet(file)


def write_probe(accuracy=0.97):
    for split in ROWS:
        write_predictions("probe_linear", split, accuracy)


def write_features(noise=0.5):
    """Features in which the samples of a true label lie together."""
    rng = np.random.default_rng(1)
    rows = []
    for split in ROWS:
        for id_ in label_errors.dataset.ids_and_labels(SPLITS[split])[0]:
            centre = np.eye(4)[int(id_.rpartition("-")[2]) % 4]
            rows.append((id_, split, list(centre + rng.normal(0, noise, 4))))
    label_errors.FEATURES.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows, columns=["id", "split", "features"]).to_parquet(label_errors.FEATURES)


def listed():
    return label_errors.label_errors(label_errors.judge(LABELS, SPLITS))


def test_wrong_labels_are_found_in_all_splits_and_the_right_one_is_suggested(wrong):
    write_probe()
    write_features()
    suspects = listed()
    found = {suspect.sample.id for suspect in suspects}
    # cleanlab's estimate of their number, which is how long the list is, is cautious.
    assert len(found & wrong) >= 0.5 * len(wrong)
    assert len(found - wrong) <= 2
    for suspect in suspects:
        if suspect.sample.id in wrong:
            assert suspect.suggestion == LABELS[int(suspect.sample.id.rpartition("-")[2]) % 4]
        assert suspect.kind == "label_error"
        assert 0 <= suspect.score <= 1
        assert suspect.reason.startswith(f"The models give {suspect.suggestion!r} ")


def test_wrong_labels_have_the_lowest_quality(wrong):
    write_probe()
    judged = label_errors.judge(LABELS, SPLITS)
    order = np.argsort(judged.quality, kind="stable")
    first = {judged.samples[i].id for i in order[: round(0.08 * len(order))]}
    assert len(first & wrong) >= 0.8 * len(wrong)


def test_a_model_that_knows_nothing_changes_little(wrong):
    write_probe()
    without = label_errors.judge(LABELS, SPLITS).probabilities
    write_predictions("structured_eval", "test", accuracy=0.25)
    write_predictions("structured_eval", "validation", accuracy=0.25)
    judged = label_errors.judge(LABELS, SPLITS)
    assert np.abs(judged.probabilities - without).mean() < 0.02
    assert label_errors.judge(LABELS, SPLITS, only="base model").accuracy < 0.4


def test_a_good_model_helps_where_the_probe_is_poor(wrong):
    write_probe(accuracy=0.4)
    poor = label_errors.judge(LABELS, SPLITS).accuracy
    write_predictions("final_eval", "test", accuracy=0.95)
    write_predictions("final_eval", "validation", accuracy=0.95)
    assert label_errors.judge(LABELS, SPLITS).accuracy > poor + 0.1


def test_no_list_if_the_models_are_mostly_wrong(wrong):
    write_probe(accuracy=0.3)
    judged = label_errors.judge(LABELS, SPLITS)
    assert label_errors.label_errors(judged) == []
    assert judged.unseen()[0].startswith("label errors: the models give only ")


def test_without_predictions_no_label_is_checked(wrong):
    judged = label_errors.judge(LABELS, SPLITS)
    assert (judged.samples, label_errors.label_errors(judged)) == ([], [])
    assert judged.unseen() == [
        "labels: there are no predictions yet; `dvc repro probe structured_eval final_eval` writes them"
    ]


def test_what_only_some_models_could_check_is_said(wrong):
    write_predictions("probe_linear", "test")
    write_predictions("probe_linear", "train")
    unchecked, absent = label_errors.judge(LABELS, SPLITS).unseen()
    assert unchecked == "the labels of validation: no model has given probabilities for them"
    assert absent.startswith("labels, with all models: predictions/probe_linear/validation.parquet, ")
    assert absent.endswith("; `dvc repro probe structured_eval final_eval` writes them")


def test_predictions_that_do_not_fit_are_named_and_not_used(wrong):
    write_probe()
    write_predictions("final_eval", "validation")
    path("final_eval", "validation").rename(path("final_eval"))
    write_predictions("structured_eval", "test", probabilities=False)
    write_predictions("structured_eval", "validation", labels=(*LABELS, "emu"))
    write_features()
    path("probe_linear").unlink()
    table = pd.read_parquet(label_errors.FEATURES)
    table[table["split"] == "train"].to_parquet(label_errors.FEATURES)
    judged = label_errors.judge(LABELS, SPLITS)
    assert judged.unchecked == ["test"]
    assert {sample.split for sample in judged.samples} == {"train", "validation"}
    assert judged.absent == [path("probe_linear"), path("final_eval", "validation")]
    assert [line.split(":")[0].removeprefix("predictions/") for line in judged.unusable] == [
        "structured_eval/test.parquet",
        "structured_eval/validation.parquet",
        "final_eval/test.parquet",
        "features/features.parquet",
    ]
    assert judged.unusable[0].endswith("has no probabilities; structured_eval.engine: posterior gives them")
    assert "`dvc repro final_eval` writes it again" in judged.unusable[2]


def test_a_probe_without_probabilities_is_not_blamed_on_the_engine(wrong):
    write_probe()
    write_predictions("probe_linear", "test", probabilities=False)
    assert label_errors.judge(LABELS, SPLITS).unusable == [
        "predictions/probe_linear/test.parquet: has no probabilities; `dvc repro probe` writes it again"
    ]


def test_a_model_without_vision_features_is_one_line(wrong):
    for split in ROWS:
        write_predictions("probe_linear", split, probabilities=False)
    label_errors.FEATURES.parent.mkdir()
    features.write(label_errors.FEATURES, {})
    json_files.write(label_errors.FEATURES.with_suffix(".json"), {"dimensions": 0, "unavailable": "it has no tower"})
    for model in ("structured_eval", "final_eval"):
        write_predictions(model, "test")
        write_predictions(model, "validation")
    judged = label_errors.judge(LABELS, SPLITS)
    assert judged.unchecked == ["train"]
    assert judged.unseen() == [
        "the labels of train: no model has given probabilities for them",
        "labels, with the linear probe and the nearest neighbours: the model gives no vision features: it has no tower",
    ]
    assert label_errors.judge(LABELS, SPLITS, only=label_errors.NEIGHBOURS).samples == []
    assert label_errors.judge(LABELS, SPLITS, only="base model").unusable == []


def test_a_label_that_the_task_does_not_have_is_reported(wrong):
    expected = r"data/test\.parquet: label 'owl' is not one of the task's labels; `dvc repro prepare` writes it again"
    write_probe()
    write_features()
    with pytest.raises(InputError, match=expected):
        label_errors.judge(LABELS[:3], SPLITS)


def test_a_changed_label_makes_predictions_stale(wrong):
    write_probe()
    ids, labels = label_errors.dataset.ids_and_labels(SPLITS["test"])
    rest = {
        split: [
            (id_, label, PICTURE)
            for id_, label in zip(*label_errors.dataset.ids_and_labels(SPLITS[split]), strict=True)
        ]
        for split in ("train", "validation")
    }
    write_splits(
        test=[
            (id_, "cat" if i == 3 else label, PICTURE) for i, (id_, label) in enumerate(zip(ids, labels, strict=True))
        ],
        **rest,
    )
    assert label_errors.judge(LABELS, SPLITS).unchecked == ["test"]


def test_a_task_with_one_label_has_no_label_errors():
    write_splits(test=[(f"t-{4 * i}", "cat", PICTURE) for i in range(20)])
    write_predictions("probe_linear", "test", labels=("cat",), accuracy=1.0)
    assert label_errors.label_errors(label_errors.judge(("cat",), SPLITS)) == []
