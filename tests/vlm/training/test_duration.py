import dataclasses

import pytest

from vlm.config.events import Log
from vlm.training import duration


@pytest.mark.parametrize(
    ("rows", "known", "expected"),
    [
        (1600, True, 2),
        (1600, False, 8),
        (400, True, 8),
        (400, False, 16),
        (800, False, 8),
        (100, True, 32),
        (3300, True, 2),
        (1, True, 3200),
    ],
)
def test_new_labels_and_few_pictures_take_more_epochs(rows, known, expected):
    assert duration.epochs(rows, known) == expected


def test_an_unknown_task_trains_longer(job, tmp_path, make_split):
    """The badges are known to tiny; with their labels in another order, it gets none of them right."""
    split = make_split("test", 10)
    labels = job.task.labels
    shifted = job.task.model_copy(
        update={"labels": labels, "words": dict(zip(labels, labels[1:] + labels[:1], strict=True))}
    )
    for task, few in ((job.task, True), (shifted, False)):
        events = []
        changed = dataclasses.replace(job, task=task, train=split, validation=split)
        number = duration.measured(changed, changed.load(), events.append)
        assert number == duration.epochs(10, few)
        (text,) = [event.text for event in events if isinstance(event, Log)]
        assert text.startswith("before training: ")
        assert text.endswith(f"{number} epochs (finetune.epochs: null)")
