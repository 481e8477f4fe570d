"""Words, descriptions and the order of labels in a task's file."""

import pytest
from pydantic import ValidationError

from vlm.config.task import Task

TASK = {
    "name": "digits",
    "source": {"folder": "digits"},
    "labels": ["zero", "One", "two"],
    "aliases": {"two": ["pair"]},
    "prompt": {"user": "Which?\n{labels}"},
}


def task(**changes) -> Task:
    return Task(**{**TASK, **changes})


def question(made: Task) -> str:
    return made.conversation()[0]["content"][1]["text"]


def test_the_prompt_lists_words_and_the_model_answers_with_them():
    digits = task(words={"zero": "0", "two": "2"})
    assert question(digits) == "Which?\n0\nOne\n2"
    assert [digits.answer(label) for label in digits.labels] == [
        '{"pred_class": "0"}',
        '{"pred_class": "One"}',
        '{"pred_class": "2"}',
    ]
    assert task(words={"zero": "0"}, answer="label").answer("zero") == "0"


def test_words_are_parsed_as_their_labels():
    digits = task(words={"zero": "0", "two": "2"})
    for label in digits.labels:
        assert digits.parse(digits.answer(label)) == digits.parse_leniently(digits.answer(label)) == label
    assert digits.parse("2.") == "two"
    assert digits.parse("two") is None  # not what the prompt lists
    assert digits.parse_leniently("A two.") == digits.parse_leniently("It is a 2!") == "two"
    assert digits.parse_leniently("a pair") == "two"
    assert digits.parse_leniently("0 or two") is None


def test_descriptions_follow_the_words_in_the_list_only():
    digits = task(words={"zero": "0"}, descriptions={"zero": "round", "two": "a swan"})
    assert question(digits) == "Which?\n0: round\nOne\ntwo: a swan"
    assert digits.answer("two") == '{"pred_class": "two"}'


@pytest.mark.parametrize(
    ("order", "listed"),
    [("listed", "zero\nOne\n2"), ("sorted", "2\nOne\nzero"), ("reversed", "2\nOne\nzero")],
)
def test_the_order_of_the_list(order, listed):
    digits = task(words={"two": "2"}, prompt={"system": "{labels}", "user": "?", "order": order})
    assert digits.conversation()[0]["content"] == listed
    assert digits.labels == ("zero", "One", "two")


def test_sorting_ignores_case():
    labels = ["b", "C", "a"]
    sorted_ = task(labels=labels, aliases={}, prompt={"user": "{labels}", "order": "sorted"})
    assert question(sorted_) == "a\nb\nC"


def test_words_may_end_a_doubt_about_case():
    labels = ["Polish", "polish"]
    assert len(task(labels=labels, aliases={}).doubts()) == 1
    assert task(labels=labels, aliases={}, words={"polish": "nail varnish"}).doubts() == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"words": {"three": "3"}}, "words: 'three' is not one of the labels"),
        ({"words": {"two": " 2"}}, "words.two: ' 2' should be one line of text without white space around it"),
        ({"words": {"two": ""}}, "words.two: '' should be one line"),
        ({"descriptions": {"two": "a\nb"}}, "descriptions.two: 'a\\nb' should be one line"),
        ({"descriptions": {"three": "?"}}, "descriptions: 'three' is not one of the labels"),
        ({"words": {"zero": "x", "two": "x"}}, "words: 'zero' and 'two' are both 'x'; give each its own"),
        ({"words": {"zero": "two"}}, "words: 'zero' and 'two' are both 'two'"),
        ({"words": {"zero": "two", "two": "zero"}}, "words.zero: 'two' also means another label; a word must mean one"),
        ({"words": {"zero": "Pair"}}, "also means another label; an alias must mean one"),
        ({"words": {"zero": "one!"}}, "words.zero: 'one!' also means another label"),
        ({"prompt": {"user": "?", "order": "random"}}, "Input should be 'listed', 'sorted' or 'reversed'"),
    ],
)
def test_unclear_words_are_an_error(changes, message):
    with pytest.raises(ValidationError) as caught:
        task(**changes)
    assert message in caught.value.errors()[0]["msg"]


def test_words_of_punctuation_are_told_apart():
    signs = task(labels=["plus", "minus"], aliases={}, words={"plus": "+", "minus": "-"})
    assert [signs.parse(signs.answer(label)) for label in signs.labels] == ["plus", "minus"]
