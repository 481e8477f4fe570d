import json
import threading

import pytest

from vlm.compute.attempts import Attempt
from vlm.compute.files import Mirror
from vlm.compute.saving import Saves


class Volume:
    """A volume whose commits can be held up, and fail; `commits` are its files' contents at the end of each one."""

    def __init__(self, folder):
        self.folder = folder / "volume"
        self.folder.mkdir()
        self.commits = []
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.error = None
        self.committed = threading.Event()

    def files(self):
        return {
            path.relative_to(self.folder).as_posix(): path.read_text()
            for path in self.folder.rglob("*")
            if path.is_file()
        }

    def commit(self):
        before = self.files()
        assert self.goes_on.wait(60)
        assert self.files() == before, "the volume was written to during a commit"
        if self.error:
            raise self.error
        self.commits.append(before)
        self.committed.set()


@pytest.fixture
def work(tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "lines").write_text("0")
    return folder


@pytest.fixture
def volume(tmp_path):
    return Volume(tmp_path)


def saves_of(work, volume, attempt=None, **intervals):
    return Saves(Mirror(work, volume.folder), attempt or Attempt(work), volume.commit, **intervals)


def test_the_job_goes_on_during_a_commit_and_the_last_save_has_all_of_its_work(work, volume):
    saves = saves_of(work, volume, first=0, every=0)
    volume.goes_on.clear()
    for step in range(1, 6):  # with a commit that lasts until after the last step
        (work / "lines").write_text(str(step))
        saves.save_if_due(step)
    assert volume.files()["lines"] == "1"
    assert not volume.commits
    volume.goes_on.set()
    saves.save(5)
    assert [files["lines"] for files in volume.commits] == ["1", "5"]


def test_nothing_is_saved_before_the_first_save_is_due(work, volume):
    saves = saves_of(work, volume, first=3600, every=0)
    saves.save_if_due(1)
    assert not volume.files()


def test_saves_are_some_time_apart(work, volume):
    saves = saves_of(work, volume, first=0, every=3600)
    saves.save_if_due(0)
    assert volume.committed.wait(60)
    for _ in range(100):  # also after the commit has ended
        saves.save_if_due(1)
        threading.Event().wait(0.001)
    saves.save(2)
    assert [json.loads(files["attempts/0.json"])["done"] for files in volume.commits] == [0, 2]


def test_a_killed_attempt_leaves_its_note_and_its_work_of_the_last_commit(work, volume, tmp_path):
    attempt = Attempt(work)
    saves = saves_of(work, volume, attempt, first=0, every=0)
    saves.save(0)
    (work / "lines").write_text("1")
    volume.committed.clear()
    saves.save_if_due(1)
    assert volume.committed.wait(60)  # the container is killed after this commit
    (_, first), (_, second) = [(files, json.loads(files["attempts/0.json"])) for files in volume.commits]
    assert (first["done"], second["done"]) == (0, 1)
    assert first["started"] == second["started"] == attempt.started < first["seen"] < second["seen"]
    Mirror(tmp_path / "next", volume.folder).restore()
    assert (tmp_path / "next" / "lines").read_text() == "1"
    (note,) = Attempt(tmp_path / "next").earlier
    assert note == second | {"ended": False}


def test_the_error_of_a_commit_is_raised_by_the_next_save_and_the_last_save_makes_up_for_it(work, volume, capsys):
    saves = saves_of(work, volume, first=0, every=0)
    volume.error = OSError("the volume is gone")
    saves.save_if_due(1)
    with pytest.raises(OSError, match="the volume is gone"):
        for _ in range(10_000):  # until the commit has ended
            saves.save_if_due(1)
            threading.Event().wait(0.001)
    with pytest.raises(OSError, match="the volume is gone"):
        saves.save(1)
    assert not volume.commits
    volume.error = None
    saves.save(2)
    (files,) = volume.commits
    assert files["lines"] == "0"
    assert "the volume is gone" in capsys.readouterr().err
