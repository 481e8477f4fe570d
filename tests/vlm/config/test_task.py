import json

import pytest
from pydantic import ValidationError

from vlm.config.task import Source, Task

LABELS = ("Aston", "BMW", "Land", "Land Cruiser", "Rolls-Royce", "Dr. Motor Co.")
TASK = {
    "name": "makers",
    "source": {"hub": "org/cars", "test": "test"},
    "labels": LABELS,
    "aliases": {"Aston": ["Aston Martin"], "Land": ["Land Rover"], "BMW": ["Bayerische Motorenwerke"]},
    "prompt": {"system": "You know {labels}.", "user": "Which is it?\n\n{labels}"},
}


def task(**changes) -> Task:
    return Task(**{**TASK, **changes})


# Prompt and answer


def test_the_exact_conversation():
    makers = task(
        labels=["Audi", "BMW"], aliases={}, prompt={"system": "Be brief.", "user": "Which?\n\n{labels}\n\nSay it."}
    )
    assert makers.conversation() == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which?\n\nAudi\nBMW\n\nSay it."}]},
    ]


def test_labels_are_inserted_into_the_system_prompt_which_is_optional():
    assert task(labels=["Audi", "BMW"], aliases={}).conversation()[0]["content"] == "You know Audi\nBMW."
    assert [message["role"] for message in task(prompt={"user": "Which?"}).conversation()] == ["user"]


def test_the_conversation_contains_the_image():
    picture = object()
    assert task().conversation(picture)[-1]["content"][0] == {"type": "image", "image": picture}


@pytest.mark.parametrize(
    ("label", "answer"),
    [
        ("BMW", '{"pred_class": "BMW"}'),
        ("Škoda", '{"pred_class": "Škoda"}'),
        ('the "best"', '{"pred_class": "the \\"best\\""}'),
    ],
)
def test_the_exact_answer(label, answer):
    makers = task(labels=["BMW", "Škoda", 'the "best"'], aliases={})
    assert makers.answer(label) == answer
    assert makers.parse(answer) == label


def test_the_answer_may_be_a_bare_label_and_both_forms_are_parsed():
    makers = task(answer="label")
    assert makers.answer("Land Cruiser") == "Land Cruiser"
    assert makers.parse("Land Cruiser") == makers.parse('{"pred_class": "Land Cruiser"}') == "Land Cruiser"
    with pytest.raises(ValidationError, match="'json' or 'label'"):
        task(answer="yaml")


def test_the_picture_may_come_last():
    makers = task(prompt={"user": "Which?", "image": "last"})
    picture = object()
    text, image = makers.conversation(picture)[-1]["content"]
    assert (text["type"], image) == ("text", {"type": "image", "image": picture})


# Parsing


@pytest.mark.parametrize("label", LABELS)
def test_every_label_and_every_answer_is_parsed(label):
    makers = task()
    assert makers.parse(label) == makers.parse(makers.answer(label)) == makers.parse_leniently(label) == label


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (" BMW\n", "BMW"),
        ("BMW.", "BMW"),
        ('"BMW"', "BMW"),
        ("'BMW'.", "BMW"),
        ('"BMW."', "BMW"),
        ("Dr. Motor Co.", "Dr. Motor Co."),
        ("Dr. Motor Co..", "Dr. Motor Co."),
        ('{"pred_class":"BMW"}', "BMW"),
        ('{ "pred_class": "BMW", "sure": true }\n', "BMW"),
        ("bmw", None),
        ("It is a BMW.", None),
        ("Aston Martin", None),
        ("BMW!", None),
        ("", None),
        ('""', None),
        ('{"pred_class": "Audi"}', None),
        ('{"pred_class": ["BMW"]}', None),
        ('{"pred_class": null}', None),
        ('{"class": "BMW"}', None),
        ('{"pred_class": "BMW"', None),
        ("[1]", None),
        ("5", None),
    ],
)
def test_parse(text, label):
    assert task().parse(text) == label


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("It is a BMW.", "BMW"),
        ("it's a bmw!", "BMW"),
        ("BMW, BMW and BMW", "BMW"),
        ("an Aston Martin", "Aston"),
        ("an aston-martin", "Aston"),
        ("a Bayerische  Motorenwerke car", "BMW"),
        ("a ROLLS ROYCE", "Rolls-Royce"),
        ("a Land Rover", "Land"),
        ("a Land Cruiser", "Land Cruiser"),  # contains the label "Land"
        ("a Land Cruiser on land", None),
        ("a BMW or an Aston", None),
        ("BMWs", None),
        ("no car at all", None),
        ("", None),
    ],
)
def test_parse_leniently(text, label):
    assert task().parse_leniently(text) == label


def test_labels_that_differ_only_in_punctuation_are_distinguished_only_by_the_strict_parser():
    grades = task(labels=["C", "C++"], aliases={})
    assert grades.parse("C++") == "C++"
    assert grades.parse_leniently("I would say C++") is None


def test_a_label_of_punctuation_is_never_found_by_the_lenient_parser():
    assert task(labels=["?", "BMW"], aliases={}).parse_leniently("What? BMW") == "BMW"


# Invalid tasks


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"labels": ["BMW", "Audi", "BMW"], "aliases": {}},
            "labels: 'BMW' is listed twice; list every label once",
        ),
        (
            {"labels": ["BMW", " Audi"], "aliases": {}},
            "labels: ' Audi' is empty or has white space around it; strip it",
        ),
        ({"labels": ["BMW", ""], "aliases": {}}, "labels: '' is empty"),
        ({"aliases": {"Audi": ["A4"]}}, "aliases: 'Audi' is not one of the labels"),
        ({"aliases": {"Aston": ["bmw"]}}, "aliases.Aston: 'bmw' also means another label; an alias must mean one"),
        ({"aliases": {"Aston": ["X"], "BMW": ["x"]}}, "aliases.Aston: 'X' also means another label"),
        ({"classes": {"0": "Aston"}}, "classes: the label 'BMW' is missing; every label needs an entry"),
        ({"classes": {label: label for label in (*LABELS, "Audi")}}, "classes: 'Audi' is not one of the labels"),
        (
            {"columns": {"group": "car"}, "source": {"folder": "cars"}},
            "columns.group has no effect without source.hub or",
        ),
        (
            {"relabel": {"1": {"to": "Audi", "reason": "?"}}},
            "relabel.1.to: 'Audi' is not one of the task's labels; correct it, or add it to labels",
        ),
        (
            {"exclude": {"1": "?"}, "relabel": {"1": {"to": "BMW", "reason": "?"}}},
            "relabel: '1' is in exclude, too; remove one of the two",
        ),
        (
            {"keep": {"1": "?"}, "relabel": {"1": {"to": "BMW", "reason": "?"}}},
            "keep: '1' is in relabel, too; remove one of the two",
        ),
        (
            {"exclude": {"1": "?"}, "decisions": "configs/decisions/makers.yaml"},
            "exclude: is here and decisions names a file; move it to configs/decisions/makers.yaml",
        ),
        (
            {"keep": {"1": "?"}, "decisions": "configs/decisions/makers.yaml"},
            "keep: is here and decisions names a file; move it to configs/decisions/makers.yaml",
        ),
        ({"keep": {"1": " "}}, "is an empty reason; write why"),
        (
            {"decisions": "makers.yaml"},
            "decisions: 'makers.yaml' should be a .yaml file in configs/decisions, because the stages prepare and audit "
            "depend on that folder",
        ),
        ({"decisions": "configs/decisions/../makers.yaml"}, "should be a .yaml file in configs/decisions"),
        ({"decisions": "configs/decisions/makers.yml"}, "should be a .yaml file in configs/decisions"),
        (
            {"source": {"badges": {"severity": 0.5, "icons": {"BMW": "bmw"}}}},
            "source.badges.icons: the label 'Aston' is missing",
        ),
    ],
)
def test_an_inconsistent_task_is_an_error(changes, message):
    with pytest.raises(ValidationError) as caught:
        task(**changes)
    assert message in caught.value.errors()[0]["msg"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, "names no kind; give exactly one of badges, hub, folder"),
        ({"hub": "a/b", "folder": "c"}, "names hub and folder; give exactly one of badges, hub, folder"),
        ({"folder": "c", "revision": "main"}, "revision has no effect with folder; remove it"),
        (
            {"folder": "a", "metadata": "/b/c.csv"},
            "metadata: '/b/c.csv' should be a file in the folder, neither hidden",
        ),
        (
            {"folder": "a", "metadata": "../c.csv"},
            "metadata: '../c.csv' should be a file in the folder, neither hidden",
        ),
        ({"folder": "a", "metadata": "b/../../c.csv"}, "metadata: 'b/../../c.csv' should be a file in the folder,"),
        ({"folder": "a", "metadata": ".c.csv"}, "metadata: '.c.csv' should be a file in the folder, neither hidden"),
        ({"folder": "a", "metadata": "b/.d/c.csv"}, "because sha256 covers no others"),
        ({"hub": "a/b", "metadata": "c.csv"}, "metadata has no effect with hub; remove it"),
        ({"hub": "a/b", "test": "train"}, "test: 'train' is also the train split; null holds test out of train"),
    ],
)
def test_an_inconsistent_source_is_an_error(source, message):
    with pytest.raises(ValidationError) as caught:
        Source(**source)
    assert message in caught.value.errors()[0]["msg"]


def test_a_task_is_immutable():
    with pytest.raises(ValidationError):
        task().labels = ("BMW",)


def test_the_answer_is_valid_json():
    assert json.loads(task().answer("BMW")) == {"pred_class": "BMW"}


def test_a_single_label_is_doubtful():
    assert task(labels=["BMW"], aliases={}).doubts() == [
        "configs/tasks/makers.yaml: labels: has one label, so every structured answer is right; add the others"
    ]
    assert task().doubts() == []
