"""Another revision beside this one; tests/vlm/commands/test_report.py has real revisions of git and DVC."""

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

        def open(self, path):
            if not (there / path).exists():
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
