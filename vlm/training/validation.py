"""A validation pass: the posterior's accuracy and log loss on a part of the validation split."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from vlm.config.events import Emit, Log
from vlm.config.params import Loss
from vlm.config.task import Task
from vlm.data import dataset
from vlm.evaluation import batching
from vlm.evaluation.intervals import wilson
from vlm.evaluation.posterior import Posterior
from vlm.training import lora

if TYPE_CHECKING:
    import numpy as np
    from accelerate import PartialState
    from peft import PeftModel
    from transformers import PreTrainedModel, ProcessorMixin

    from vlm.training.features import Features

_MOST = 0.9  # of the answers, or of the truth
_FEW = 4  # answers have collapsed if most of them are among a quarter of the labels that most of the truth is among


class CollapseWarning:
    """Warns at the first validation pass at which nearly all answers are a few labels, and again if that recurs."""

    def __init__(self, task: Task, emit: Emit) -> None:
        self._labels = task.labels
        self._emit = emit
        self._collapsed = False

    def __call__(self, step: int, answers: "np.ndarray", truth: "np.ndarray") -> None:
        """`answers` and `truth` are indices of the task's labels, one for each sample of the pass after `step`."""
        found, true = Counter(answers.tolist()), Counter(truth.tolist())
        few, many = _most_common(found), _most_common(true)
        before, self._collapsed = self._collapsed, len(few) < len(many) and len(few) <= max(1, len(many) // _FEW)
        if self._collapsed and not before:
            names = [repr(self._labels[label]) for label in few]
            listed = f"one of {len(names)} labels ({', '.join(names[:3])}{', ...' if names[3:] else ''})"
            listed = names[0] if len(names) == 1 else listed
            self._emit(
                Log(
                    f"warning: validation pass at step {step}: {sum(found[label] for label in few)} of {len(answers)} "
                    f"answers are {listed}; the truth has {sum(true[label] for label in few)}. If it stays so, try a "
                    "lower finetune.learning_rate"
                )
            )


def _most_common(counts: Counter[int]) -> list[int]:
    """The fewest labels that make up _MOST of the counts, the most common first."""
    chosen, covered = [], 0
    for label, count in counts.most_common():
        if covered >= _MOST * counts.total():
            break
        chosen.append(label)
        covered += count
    return chosen


def no_better_than_constant(data: str, rows: Sequence[int], accuracy: float, what: str, loss: Loss) -> str | None:
    """A warning if `accuracy` on `rows` of a split is not above that of always giving their most common label.

    `what` has that accuracy, after training with `loss`.
    """
    _, labels = dataset.ids_and_labels(data)
    (label, count), *_ = Counter(labels[row] for row in rows).most_common(1)
    if accuracy > count / len(rows):
        return None
    other = "finetune.loss: labels, " if loss == "tokens" else ""
    return (
        f"warning: {what} is right for {accuracy * len(rows):.0f} of {len(rows)} validation samples, and always "
        f"answering {label!r} for {count}: it has not learned to tell the labels apart; try {other}a lower "
        "finetune.learning_rate or more finetune.epochs"
    )


def is_midway(earlier: Sequence[int], step: int, steps: int) -> bool:
    """Whether to warn of no progress after the pass at `step` of `steps`, given the steps of the passes before it.

    That is once: after the second pass or the first in the second half, whichever comes first. It is not after the last
    pass, because the best checkpoint is judged then.
    """
    if step >= steps or len(earlier) > 1:
        return False
    return 2 * earlier[0] < steps if earlier else 2 * step >= steps


def selection(right: int, log_loss: float) -> float:
    """A number that is larger for more right answers, and for as many right answers with a lower log loss."""
    return right - log_loss / (1 + log_loss)  # the fraction is at least 0 and below 1


def validation_rows(data: str, count: int, seed: int) -> list[int]:
    """Chooses `count` rows of a split (all if it has fewer), spread over the labels as evenly as possible."""
    import numpy as np

    _, labels = dataset.ids_and_labels(data)
    order = np.random.default_rng(seed).permutation(len(labels))
    seen: dict[str, int] = {}
    rank = {}
    for row in order.tolist():
        rank[row] = seen[labels[row]] = seen.get(labels[row], 0) + 1
    return sorted(sorted(order.tolist(), key=lambda row: rank[row])[:count])


def validate(
    model: "PeftModel | PreTrainedModel",
    processor: "ProcessorMixin",
    task: Task,
    data: str,
    rows: Sequence[int],
    load: "batching.Loader | Features",
    batch_size: int,
    processes: "PartialState",
    emit: Emit,
    check: "Callable[[np.ndarray, np.ndarray], None]" = lambda answers, truth: None,
) -> dict[str, float]:
    """Returns `accuracy`, its 95 % Wilson interval (`low`, `high`) and `log_loss` (nats) on `rows` of `data`.

    `selection` orders passes by accuracy and, if equal, by log loss.
    `load` returns the model's inputs for rows. A batch that does not fit into memory is split. With n processes, each
    answers every n-th batch; all of them return the whole result. `check` gets the answers and the truth, as indices of
    the task's labels.
    """
    import numpy as np
    import torch

    from vlm.evaluation.feed import computed

    _, labels = dataset.ids_and_labels(data)
    truth = np.array([task.labels.index(labels[row]) for row in rows])
    inner, training = lora.inside(model), model.training
    model.eval()
    posterior = Posterior(inner, processor, task)
    found = torch.zeros(len(rows), len(task.labels), dtype=torch.float64)
    batches = batching.plan(load.lengths(rows), batch_size, posterior.wants_equal_lengths)
    own = batches[processes.process_index :: processes.num_processes]
    numbers = [[rows[i] for i in batch] for batch in own]
    answered = computed(lambda _, inputs: posterior(inputs), load, numbers, inner, emit)
    for batch, (_, parts) in zip(own, answered, strict=True):
        found[batch] = torch.cat(parts).double()
    if processes.num_processes > 1:
        found = found.to(inner.device)
        torch.distributed.all_reduce(found)
    model.train(training)
    probabilities = found.cpu().numpy()
    answers = probabilities.argmax(1)
    check(answers, truth)
    right = int((answers == truth).sum())
    low, high = wilson(right, len(rows))
    of_truth = np.maximum(probabilities[np.arange(len(rows)), truth], np.finfo(np.float64).tiny)
    log_loss = float(-np.log(of_truth).mean())
    return {
        "accuracy": right / len(rows),
        "low": low,
        "high": high,
        "log_loss": log_loss,
        "selection": selection(right, log_loss),
    }
