import pytest

from tests.vlm.measuring.test_metrics import table
from vlm.measuring.answers import Predictions
from vlm.report import verdict


def answers(name, right, n=200):
    """`right` of `n` answers are right: the first ones."""
    rows = [("a", "a" if i < right else "b") for i in range(n)]
    return Predictions(name, table(*rows), ["a", "b"])


def said(**right):
    return verdict.sentences({name: answers(name, number) for name, number in right.items()})


def test_fine_tuning_that_helps():
    first, second, third = said(structured_eval=100, final_eval=180, probe_linear=150, majority=20)
    assert first.text.startswith("Fine-tuning gains 40.0 points over the base model's structured answers")
    assert "it fixes 80 samples and breaks 0" in first.text
    assert second.text.startswith("The fine-tuned model beats a linear probe")
    assert third.text.startswith("Always answering b, the most frequent label")
    assert not any(sentence.warning for sentence in (first, second, third))


def test_correcting_the_label_prior():
    prior, tuning = said(structured_plain=100, structured_eval=140, final_eval=180)
    assert prior.text.startswith(
        "Correcting the label prior gains 20.0 points over the model's own probabilities (95 %"
    )
    assert tuning.text.startswith(
        "Fine-tuning gains 20.0 points over the base model's structured answers with the label prior corrected (95 %"
    )


@pytest.mark.parametrize("probe", [178, 181])
def test_a_probe_that_is_as_good_comes_first(probe):
    first, second = said(structured_eval=100, final_eval=180, probe_linear=probe)
    assert first.text.startswith("The fine-tuned model cannot be told apart from a linear probe on the frozen vision")
    assert f"90.0\u00a0% against {probe / 2:.1f}\u00a0% (95 % interval " in first.text
    assert first.warning
    assert second.text.startswith("Fine-tuning gains")


def test_a_probe_that_is_better_comes_first():
    first, second = said(structured_eval=100, final_eval=180, probe_linear=195)
    assert first.text.startswith("A linear probe on the frozen vision tower's features, which needs no fine-tuning, ")
    assert "beats the fine-tuned model by 7.5 points: 97.5\u00a0% against 90.0\u00a0% (95 % interval +" in first.text
    assert first.warning
    assert second.text.startswith("Fine-tuning gains")


def test_nearest_neighbours_that_are_better_come_before_a_linear_probe_that_is_not():
    first, second, third = said(structured_eval=100, final_eval=180, probe_linear=150, probe_nearest=199)
    assert first.text.startswith("A nearest-neighbour classifier on the frozen vision tower's features, which needs")
    assert second.text.startswith("Fine-tuning gains")
    assert third.text.startswith("The fine-tuned model beats a linear probe")


def test_fine_tuning_that_does_not_help():
    [none] = said(structured_eval=100, final_eval=101)
    assert none.text.startswith("Fine-tuning makes no difference that could be told from chance: +0.5 points")
    [worse] = said(structured_eval=100, final_eval=50)
    assert worse.text.startswith("Fine-tuning loses 25.0 points compared with the base model's structured answers")
    assert none.warning and worse.warning
    shuffled = {"structured_eval": answers("structured_eval", 100), "final_eval": answers("final_eval", 100)}
    frame = shuffled["final_eval"].frame
    shuffled["final_eval"].frame = frame.assign(
        predicted=frame["predicted"].map({"a": "b", "b": "a"}), right=~frame["right"]
    )
    [even] = verdict.sentences(shuffled)
    assert even.text.startswith("Fine-tuning makes no difference that could be told from chance: 0.0 points compared")


def test_equal_answers():
    fine_tuning, probe = said(structured_eval=100, final_eval=100, probe_linear=100)[::-1]
    assert fine_tuning.text == (
        "Fine-tuning makes no difference: the base model's structured answers are right about the same samples."
    )
    assert probe.text.endswith("50.0\u00a0% against 50.0\u00a0% (both are right about the same samples).")
    assert fine_tuning.warning and probe.warning


@pytest.mark.parametrize(
    "difference, shown", [(0, "0.0"), (-0.0004, "0.0"), (0.0004, "0.0"), (-0.0006, "−0.1"), (0.125, "+12.5")]
)
def test_only_differences_that_are_shown_have_a_sign(difference, shown):
    assert verdict.signed(difference) == shown


def test_with_fewer_predictions_there_is_less_to_say():
    [probe] = said(structured_eval=100, probe_linear=150)
    assert probe.text.startswith(
        "A linear probe on the frozen vision tower's features, which learns from the training split, beats the base model"
    )
    [equal] = said(structured_eval=100, probe_linear=101)
    assert "tower's features, which learns from the training split: 50.0" in equal.text
    assert said(structured_eval=100) == said(probe_linear=100, majority=10) == []
