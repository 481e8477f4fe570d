import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.vlm.audit.conftest import MAKERS
from tests.vlm.audit.samples import encoded, opened, write_splits
from vlm.audit.audit import SPLITS, audit
from vlm.audit.label_errors import FEATURES, MODELS
from vlm.audit.suspects import Sample, Suspect, ranked, write
from vlm.config.decisions import Decisions
from vlm.config.errors import InputError
from vlm.config.yaml_files import read_yaml

ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(task, tmp_path, monkeypatch):
    """An empty current folder; a task with the labels of `photos`."""
    monkeypatch.chdir(tmp_path)
    return task.model_copy(update={"labels": tuple(MAKERS)})


def test_right_after_prepare_it_finds_copies_and_bad_pictures_and_says_what_it_did_not_check(folder, photos, wall):
    label, picture = photos[0]
    copy = encoded(opened(picture).resize((110, 110)))
    write_splits(
        test=[(f"t{i}", *photo) for i, photo in enumerate(photos)],
        train=[("copy", label, copy), ("wall", "bmw", wall), ("wall too", "bmw", wall)],
    )
    found = audit(folder, lambda event: None)
    assert [(s.sample.id, s.kind, s.other) for s in found.suspects] == [
        ("wall", "blank", ""),
        ("wall too", "blank", ""),
        ("copy", "near_duplicate", "test/t0"),
    ]
    assert found.summary() == "83 samples: 1 near duplicate, 2 blank pictures"
    assert found.unseen == [
        "labels: there are no predictions yet; `dvc repro probe structured_eval final_eval` writes them"
    ]
    found.write(Path("plots/audit"), Path("metrics/audit.json"))
    assert json.loads(Path("metrics/audit.json").read_text()) == {"suspects": 3}
    details = json.loads(Path("plots/audit/details.json").read_text())
    assert details == {
        "samples": 83, "labels_checked": 0, "models_agree": 0.0, "label_error": 0, "near_duplicate": 1, "blank": 2,
        "blurred": 0, "dark": 0, "odd_size": 0, "decided": 0,
    }  # fmt: skip
    with Path("plots/audit/suspects.csv").open(newline="") as file:
        first, *_, last = csv.DictReader(file)
    assert first["reason"] == "It shows a single colour."
    assert last == {
        "rank": "3", "id": "copy", "split": "train", "kind": "near_duplicate", "score": last["score"], "label": label,
        "suggestion": "", "other": "test/t0",
        "reason": "Nearly the same picture as test/t0, which is in another split.", "decided": "",
    }  # fmt: skip


def test_a_clean_set_has_no_suspects(folder, photos):
    write_splits(test=[(f"t{i}", *photo) for i, photo in enumerate(photos)])
    found = audit(folder, lambda event: None)
    assert found.summary() == "80 samples: nothing suspicious"


def test_a_missing_split_is_reported(folder):
    with pytest.raises(InputError, match="dvc repro prepare"):
        audit(folder, lambda event: None)


def test_the_most_suspicious_come_first_and_a_blank_picture_is_listed_once(tmp_path):
    a, b = Sample("test", "a", "cat"), Sample("train", "b, c", "dog")
    found = [
        Suspect(b, "label_error", 0.5, "x", suggestion="cat"),
        Suspect(a, "label_error", 0.9, "y", suggestion="dog"),
        Suspect(a, "blank", 1.0, "z"),
        Suspect(b, "near_duplicate", 0.7, "w", other="test/a"),
    ]
    assert [(s.sample.id, s.kind) for s in ranked(found, Decisions())] == [
        ("a", "blank"),
        ("b, c", "near_duplicate"),
        ("b, c", "label_error"),
    ]
    assert ranked(reversed(found), Decisions()) == ranked(found, Decisions())
    write(tmp_path / "plots" / "suspects.csv", ranked(found, Decisions()))
    assert (tmp_path / "plots/suspects.csv").read_text().splitlines() == [
        "rank,id,split,kind,score,label,suggestion,other,reason,decided",
        "1,a,test,blank,1.0000,cat,,,z,",
        '2,"b, c",train,near_duplicate,0.7000,dog,,test/a,w,',
        '3,"b, c",train,label_error,0.5000,dog,cat,,x,',
    ]


def test_decided_suspects_come_last_with_the_decision():
    suspects = {
        id_: Suspect(Sample("test", id_, "dog"), "label_error", score, "x", suggestion="cat")
        for id_, score in (("kept", 0.9), ("relabelled", 0.8), ("open", 0.4))
    }
    copy = replace(suspects["relabelled"], kind="near_duplicate", score=0.7, other="test/open")
    gone = replace(copy, sample=Sample("train", "gone", "cat"), score=0.6)
    decisions = Decisions.model_validate(
        {
            "exclude": {"gone": "is a copy"},
            "relabel": {"relabelled": {"to": "dog", "reason": "has a tail"}},
            "keep": {"kept": "barks"},
        }
    )
    assert [(s.sample.id, s.kind, s.decided) for s in ranked([*suspects.values(), copy, gone], decisions)] == [
        ("relabelled", "near_duplicate", ""),  # a new label does not make it less of a copy
        ("open", "label_error", ""),
        ("kept", "label_error", "kept: barks"),
        ("relabelled", "label_error", "relabelled to dog: has a tail"),
        ("gone", "near_duplicate", "excluded: is a copy"),
    ]


def test_decided_suspects_are_not_counted(folder, photos, wall):
    write_splits(
        test=[(f"t{i}", *photo) for i, photo in enumerate(photos)],
        train=[("wall", "bmw", wall), ("wall too", "bmw", wall)],
    )
    found = audit(folder.model_copy(update={"keep": {"wall": "no badge, on purpose"}}), lambda event: None)
    assert [(s.sample.id, s.decided) for s in found.suspects] == [
        ("wall too", ""),
        ("wall", "kept: no badge, on purpose"),
    ]
    assert found.undecided == found.suspects[:1]
    assert found.summary() == "82 samples: 1 blank picture; 1 decided already"
    found.write(Path("plots/audit"), Path("metrics/audit.json"))
    assert json.loads(Path("metrics/audit.json").read_text()) == {"suspects": 1}
    details = json.loads(Path("plots/audit/details.json").read_text())
    assert (details["blank"], details["decided"]) == (1, 1)
    missing = folder.model_copy(update={"decisions": "configs/decisions/makers.yaml"})
    with pytest.raises(InputError, match=r"decisions: there is no file 'configs/decisions/makers\.yaml'"):
        audit(missing, lambda event: None)


def test_the_stage_depends_on_all_that_the_audit_reads():
    stage = read_yaml(ROOT / "dvc.yaml")["stages"]["audit"]
    read = {f"predictions/{name}" for name, _ in MODELS.values()} | {FEATURES.parent.as_posix()}
    read |= {path.as_posix() for path in SPLITS.values()} | {"configs/decisions", "configs/tasks/${task}.yaml"}
    assert {dep for dep in stage["deps"] if not dep.startswith(("vlm/", "stages/"))} == read
