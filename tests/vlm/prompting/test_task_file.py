import shutil
from pathlib import Path

import pytest

from vlm.config.errors import InputError
from vlm.config.prompts import Wording
from vlm.config.task import load_task
from vlm.prompting import task_file

ROOT = Path(__file__).parents[3]


@pytest.fixture
def work(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_file_is_the_tasks_with_another_wording_and_its_comments(work):
    task = load_task("car_badges")
    wording = Wording(
        system=None,
        user="Which?\n\n{labels}",
        words={"Aston": "Aston Martin", "BMW": "no"},
        descriptions={"Audi": "four rings"},
        order="reversed",
        image="last",
        answer="label",
    )
    file = task_file.write(task, wording, "better")
    assert file == Path("configs/tasks/better.yaml")
    made = load_task("better")
    assert Wording.of(made) == wording
    assert made == wording.applied(task).model_copy(update={"name": "better"})
    text = file.read_text()
    assert text.startswith(
        "# dvc exp run -S task=better\n# Written by the prompt search from configs/tasks/car_badges.yaml. Its next run "
        "overwrites this file, unless this line is removed.\n# The embedded task"
    )
    assert "# how hard the photos are: 0 clean and frontal, 1 hardly readable" in text


def test_the_present_wording_changes_nothing(work):
    for name in ("car_badges", "car_maker", "human_action", "own_pictures"):
        task = load_task(name)
        task_file.write(task, Wording.of(task), "same")
        assert load_task("same") == task.model_copy(update={"name": "same"})


def test_null_values_stay_null(work):
    task = load_task("car_maker")
    assert "revision: null" in task_file.write(task, Wording.of(task), "same").read_text()


def test_its_own_file_is_overwritten_and_nobody_elses(work):
    task = load_task("car_badges")
    own = Wording.of(task)
    task_file.write(task, own, "better")
    task_file.write(task, own.model_copy(update={"user": "Which?"}), "better")
    assert load_task("better").prompt.user == "Which?"
    for name in ("car_maker", "car_badges"):
        before = Path(f"configs/tasks/{name}.yaml").read_text()
        with pytest.raises(
            InputError, match=f"^--out: configs/tasks/{name}.yaml is there, and the prompt search did not"
        ):
            task_file.write(task, own, name)
        assert Path(f"configs/tasks/{name}.yaml").read_text() == before


@pytest.mark.parametrize("name", ["../params", "a/b", "", ".hidden"])
def test_a_name_is_a_file_in_configs_tasks(work, name):
    with pytest.raises(InputError, match=r"^--out: .* should be the name of a file in configs/tasks, without .yaml"):
        task_file.require_writable(name)
