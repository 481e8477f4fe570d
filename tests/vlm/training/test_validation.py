import dataclasses
from collections import Counter

import numpy as np
import pytest

from tests.vlm.training.jobs import adapter
from vlm.config.events import Log
from vlm.data import dataset
from vlm.training.validation import (
    CollapseWarning,
    is_midway,
    no_better_than_constant,
    selection,
    validation_rows,
)


def test_validation_rows_are_spread_over_the_labels(job, make_split):
    split = make_split("train", 60)
    _, labels = dataset.ids_and_labels(split)
    rows = validation_rows(split, 20, seed=1)
    assert rows == sorted(set(rows)) == validation_rows(split, 20, seed=1)
    assert len(rows) == 20
    counts = Counter(labels[row] for row in rows)
    assert max(counts.values()) <= 1 or len(counts) == len(set(labels))
    assert validation_rows(split, 99, seed=1) == list(range(60))
    assert validation_rows(split, 20, seed=2) != rows


@pytest.fixture
def warned(task):
    """warned([0, 0, 1], ...) returns the warnings at passes with these answers, for a truth of five of each label."""

    def run(*passes, truth=None):
        truth = np.repeat(np.arange(len(task.labels)), 5) if truth is None else truth
        events = []
        warn = CollapseWarning(task, events.append)
        for number, answers in enumerate(passes, 1):
            warn(50 * number, np.array(answers), truth)
        assert all(isinstance(event, Log) for event in events)
        return [event.text.removeprefix("warning: validation pass at step ") for event in events]

    return run


def answers(labels, counts):
    return np.repeat(labels, counts)


def test_a_collapse_to_one_label_is_a_warning_with_the_numbers(warned):
    assert warned(answers([3, 4, 5], [150, 3, 2])) == [
        "50: 150 of 155 answers are 'BMW'; the truth has 5. If it stays so, try a lower finetune.learning_rate"
    ]


def test_a_collapse_to_few_labels_is_a_warning(warned):
    (warning,) = warned(answers([0, 1, 2, 3, 4], [40, 40, 30, 30, 15]))
    assert warning.startswith(
        "50: 140 of 155 answers are one of 4 labels ('Acura', 'Aston', 'Audi', ...); the truth has 20."
    )


def test_a_model_that_confuses_labels_has_not_collapsed(warned, task):
    count = len(task.labels)
    shifted = np.roll(np.repeat(np.arange(count), 5), 5)  # all wrong
    half = np.repeat(np.arange(count) // 2 * 2, 5)  # two labels become one
    assert warned(shifted, half) == []


def test_the_warning_comes_once_and_again_after_a_recovery(warned):
    bad, good = answers([3], [155]), np.repeat(np.arange(31), 5)
    assert [line.partition(":")[0] for line in warned(good, bad, answers([4], [155]), good, bad)] == ["100", "250"]


@pytest.mark.parametrize(("truth", "count"), [([80, 80], 1), ([150, 10], 0)])
def test_with_two_labels_one_of_them_may_be_nearly_all_of_the_truth(warned, truth, count):
    assert len(warned(answers([0], [160]), truth=np.repeat([0, 1], truth))) == count


def test_accuracy_that_a_constant_answer_reaches_is_a_warning(make_split):
    split = make_split("train", 60)
    _, labels = dataset.ids_and_labels(split)
    rows = list(range(60))
    (label, most), *_ = Counter(labels).most_common(1)
    assert no_better_than_constant(split, rows, (most + 1) / 60, "the best checkpoint", "tokens") is None
    warning = (
        f"warning: the best checkpoint is right for {most} of 60 validation samples, and always answering {label!r} for "
        f"{most}: it has not learned to tell the labels apart; try "
    )
    remedies = "a lower finetune.learning_rate or more finetune.epochs"
    for loss, other in (("tokens", "finetune.loss: labels, "), ("labels", "")):
        assert (
            no_better_than_constant(split, rows, most / 60, "the best checkpoint", loss) == warning + other + remedies
        )


@pytest.mark.parametrize(
    ("passes", "steps", "warned_at"),
    [([10, 20, 30, 40], 40, [20]), ([10, 20, 30, 40], 200, [20]), ([30, 40], 40, [30]), ([50, 51], 51, [50]), ([40], 40, [])],
)  # fmt: skip
def test_no_progress_is_judged_once_and_not_after_the_last_pass(passes, steps, warned_at):
    found = [step for i, step in enumerate(passes) if is_midway(passes[:i], step, steps)]
    assert found == warned_at


def test_more_right_answers_are_better_and_as_many_with_a_lower_log_loss():
    ordered = [(0, 700.0), (0, 0.0), (7, 30.0), (7, 0.5), (7, 0.4999999), (8, 700.0), (8, 0.1), (9, 9.0)]
    values = [selection(*each) for each in ordered]
    assert values == sorted(values)
    assert len(set(values)) == len(values)


def test_a_training_that_collapses_says_so_at_the_pass_and_at_the_end(job, tmp_path):
    """At a learning rate at which nothing is learned but one answer."""
    knobs = job.finetune.model_copy(update={"learning_rate": 0.2, "eval_samples": 31})
    events = []
    adapter(dataclasses.replace(job, finetune=knobs), tmp_path, events.append)
    texts = [event.text for event in events if isinstance(event, Log) and event.text.startswith("warning: ")]
    assert sum("validation pass at step" in text for text in texts) == 1
    assert "the best checkpoint is right for" in texts[-1]
    assert "it has not learned to tell the labels apart" in texts[-1]
    assert sum("the model at step 4 of 6 is right for" in text for text in texts) == 1
