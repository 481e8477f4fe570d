"""Files of candidates for the prompt search."""

import re
from pathlib import Path

import pytest

from vlm.config.errors import InputError
from vlm.config.prompts import Candidates, Wording, candidates_file, load_candidates
from vlm.config.task import load_task

ROOT = Path(__file__).parents[3]
TASKS = sorted(file.stem for file in (ROOT / "configs/tasks").glob("*.yaml"))


def test_a_wording_is_a_tasks_own_or_replaces_it(task):
    assert Wording.of(task).applied(task).conversation() == task.conversation()
    assert Wording.of(task).applied(task) == task
    other = Wording(
        system=None,
        user="Which?\n{labels}",
        words={"BMW": "Bayern"},
        descriptions={"Audi": "four rings"},
        order="reversed",
        image="last",
        answer="label",
    )
    made = other.applied(task)
    assert Wording.of(made) == other
    assert made.conversation()[0]["content"][0]["text"].startswith("Which?\nsmart\nVolvo\n")
    assert made.answer("BMW") == "Bayern"
    assert made.source == task.source and made.labels == task.labels


def test_parts_start_with_the_tasks_own_and_have_every_value_once(task):
    candidates = Candidates(
        user=["Which?", "Which?"], words=["lower", "spaces"], order=["listed", "sorted"], system=[None]
    )
    parts = candidates.parts(task)
    assert parts["user"] == [task.prompt.user, "Which?"]
    assert parts["system"] == [task.prompt.system, None]
    assert parts["order"] == ["listed", "sorted"]
    assert parts["image"] == ["first"] and parts["answer"] == ["json"]
    own, lower = parts["words"]  # no label has an underscore
    assert own == {} and lower["BMW"] == "bmw" and "smart" not in lower


def test_a_respelling_that_makes_two_labels_alike_is_left_out(task):
    alike = task.model_copy(
        update={"labels": ("a b", "a_b"), "aliases": {}, "source": load_task("cats_vs_dogs").source}
    )
    assert Candidates(words=["spaces"]).parts(alike)["words"] == [{}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user: Which?", "user: 'Which?' should be a list"),
        ("question: [Which?]", "question: there is no such key; the keys here are system, user, words, "),
        ("words: [{Trabant: Trabi}]", "words: 'Trabant' is not one of the labels"),
        ("words: [upper]", "words.0.literal['lower','spaces']: 'upper' should be 'lower' or 'spaces'"),
        ("user: ['One of {label}']", "{label} is not a placeholder; use {labels} for the list of labels"),
        ("image: [middle]", "image.0: 'middle' should be 'first' or 'last'"),
        ("propose: {count: 3}", "propose.model: is missing; add it"),
    ],
)
def test_an_error_in_a_file_is_one_line_that_names_it(task, tmp_path, text, message):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=f"^{re.escape(f'{file}: {message}')}"):
        load_candidates(file, task)


def test_a_missing_file_is_reported_with_those_that_exist(task):
    with pytest.raises(
        InputError, match=r"there is no file configs/prompts/mine.yaml; configs/prompts has car_badges, "
    ):
        load_candidates(candidates_file("mine", task), task)


def test_a_task_without_candidates_of_its_own_gets_the_default(task):
    assert candidates_file(None, task) == Path("configs/prompts/car_badges.yaml")
    assert candidates_file(None, load_task("car_maker")) == Path("configs/prompts/default.yaml")
    assert candidates_file("default", task) == Path("configs/prompts/default.yaml")


def test_the_default_candidates_fit_every_task(at_root):
    for name in TASKS:
        task = load_task(name)
        assert len(load_candidates(Path("configs/prompts/default.yaml"), task).parts(task)["user"]) == 5
    task = load_task("human_action")
    words = load_candidates(Path("configs/prompts/default.yaml"), task).parts(task)["words"]
    assert words == [{}, {"listening_to_music": "listening to music", "using_laptop": "using laptop"}]


def test_the_candidates_of_a_task_fit_it(at_root):
    for file in Path("configs/prompts").glob("*.yaml"):
        if file.stem in TASKS:
            load_candidates(file, load_task(file.stem))
