"""Another revision beside this one; tests/vlm/commands/test_report.py has real revisions of git and DVC."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.vlm.report import invented
from vlm.config.errors import InputError
from vlm.measuring.revisions import Revision
from vlm.report import against, answers

NAMES = ("structured_eval", "final_eval")


@pytest.fixture
def there(tmp_path, monkeypatch):
    """The folder with the files of the other revision; the working tree is beside it, with the same pictures."""
    here, there = (invented.repository(tmp_path / name, samples=12, names=NAMES) for name in ("here", "there"))
    monkeypatch.chdir(here)
    return there


@pytest.fixture
def opened(there, monkeypatch):
    """The names of the revisions that were opened."""
    names = []

    class Folder(Revision):
        def __init__(self, name):
            names.append(name)
            self.name = name

        def has(self, path):
            return (there / path).exists()

        def open(self, path):
            if not self.has(path):
                raise InputError(f"{path}: there is no such file in {self.name}")
            return (there / path).open("rb")

    monkeypatch.setattr(against, "Revision", Folder)
    return names


def compare():
    found, _ = answers.load()
    return against.compare_with("before", found)


def test_a_revision_is_opened_once(opened):
    assert compare()["shared"] == 12
    assert opened == ["before"]


@pytest.mark.parametrize("name", NAMES)
def test_predictions_that_are_older_than_the_test_split_of_their_revision(there, opened, name):
    invented.write_predictions(there, name, invented.LABELS, 9, np.random.default_rng(0), accuracy=0.5)
    found = compare()
    assert found["shared"] == 9
    for model in found["models"].values():
        assert [place == -2 for place in model["predicted"]] == [False] * 9 + [True] * 3


def test_no_sample_that_all_predictions_of_a_revision_answer(there, opened):
    invented.write_predictions(there, "final_eval", invented.LABELS, 0, np.random.default_rng(0), accuracy=0.5)
    with pytest.raises(InputError, match="--against: before: shares no test sample with this run"):
        compare()


def lock(of, **stages):
    """Writes a dvc.lock. Each stage has its model and the hashes of its inputs, (model, {path: hash})."""
    ran = {
        stage: {
            "params": {"params.yaml": {"model": model, "task": "invented"}},
            "deps": [{"path": path, "md5": md5} for path, md5 in deps.items()],
            "outs": [{"path": f"predictions/{stage}", "md5": f"{of}"}],
        }
        for stage, (model, deps) in stages.items()
    }
    invented.write(of, "dvc.lock", json.dumps({"stages": ran}))


def test_what_ran_with_another_model_there_is_left_out(there, opened):
    """The dvc.lock of a commit can be of several runs, of which the later ones repeated some stages only."""
    lock(Path(), structured_eval=("tiny", {}), final_eval=("tiny", {}))
    lock(there, structured_eval=("tiny", {}), final_eval=("450M", {}))
    found = compare()
    assert [*found["models"]] == ["structured_eval"]
    assert (found["left_out"], found["missing"]) == (["Fine-tuned, structured"], [])
    assert found["changed"] == []  # the model of the fine-tune is not a difference between what is compared
    lock(there, structured_eval=("450M", {}), final_eval=("450M", {}))
    with pytest.raises(
        InputError, match="--against: before: all its predictions are of another model or task than its "
    ):
        compare()


def test_files_that_differ(there, opened):
    task, decisions = "configs/tasks/invented.yaml", "configs/decisions"
    ours = {
        task: "1",
        decisions: "2.dir",
        "vlm/data": "3.dir",
        "vlm/evaluation": "4.dir",
        "predictions/prepare/x.json": "5",
    }
    lock(Path(), prepare=("tiny", ours), probe=("tiny", {task: "1"}))
    lock(there, prepare=("tiny", ours), final_eval=("tiny", {"vlm/evaluation": "7.dir"}))
    assert compare()["inputs"] == []
    theirs = ours | {task: "8", "vlm/evaluation": "9.dir", "predictions/prepare/x.json": "10"}  # a result, no input
    lock(there, prepare=("tiny", theirs))
    found = compare()
    assert (found["changed"], found["inputs"]) == ([], [task, "vlm/evaluation"])


def test_decisions_that_differ(there, opened):
    """dvc.lock has one hash for the decisions about all tasks."""
    for folder, reason in ((Path(), "looked at again"), (there, "dark")):
        path = folder / "configs/tasks/invented.yaml"
        task = json.loads(path.read_text()) | {"decisions": "configs/decisions/invented.yaml"}
        invented.write(folder, "configs/tasks/invented.yaml", json.dumps(task))
        invented.write(folder, "configs/decisions/invented.yaml", "exclude: {}\n")
        invented.write(folder, "configs/decisions/other.yaml", json.dumps({"exclude": {"7.jpg": reason}}))
    lock(Path(), prepare=("tiny", {"configs/decisions": "1.dir"}))
    lock(there, prepare=("tiny", {"configs/decisions": "2.dir"}))
    assert compare()["inputs"] == []  # those about another task
    invented.write(there, "configs/decisions/invented.yaml", json.dumps({"exclude": {"test/77.jpg": "dark"}}))
    assert compare()["inputs"] == ["configs/decisions/invented.yaml"]
    lock(there, prepare=("tiny", {"configs/decisions": "1.dir"}))
    assert compare()["inputs"] == []  # edited since, and not applied


def test_parameters_that_differ_in_one_stage_only(there, opened):
    lock(Path(), structured_eval=("tiny", {}), probe=("tiny", {}))
    path = there / "dvc.lock"
    lock(there, structured_eval=("tiny", {}), probe=("tiny", {}))
    ran = json.loads(path.read_text())
    for stage, tokens in (("structured_eval", 64), ("probe", None)):
        ran["stages"][stage]["params"]["params.yaml"]["image"] = {"max_tokens": tokens}
    path.write_text(json.dumps(ran))
    assert compare()["changed"] == [
        {"key": "image.max_tokens", "here": "", "there": "64"},
        {"key": "image.max_tokens", "here": "", "there": "null"},
    ]


def test_without_dvc_lock_nothing_is_said_about_what_differs(there, opened):
    lock(Path(), prepare=("tiny", {}))
    found = compare()
    assert (found["changed"], found["inputs"]) == (None, None)


@pytest.mark.parametrize(
    "text, message", [("- task", "should be a mapping of keys to values in before"), ("a: [", "is not YAML in before")]
)
def test_a_file_of_a_revision_that_is_not_what_it_should_be(there, opened, text, message):
    invented.write(there, "params.yaml", text)
    with pytest.raises(InputError, match=f"params.yaml: {message}"):
        compare()
