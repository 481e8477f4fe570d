"""A validation pass: the posterior's accuracy and log loss on a part of the validation split."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlm.config.events import Emit
from vlm.config.task import Task
from vlm.data import dataset
from vlm.evaluation import batching
from vlm.evaluation.intervals import wilson
from vlm.evaluation.posterior import Posterior

if TYPE_CHECKING:
    from accelerate import PartialState
    from peft import PeftModel
    from transformers import ProcessorMixin

    from vlm.training.features import Features


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
    model: "PeftModel",
    processor: "ProcessorMixin",
    task: Task,
    data: str,
    rows: Sequence[int],
    load: "batching.Loader | Features",
    batch_size: int,
    processes: "PartialState",
    emit: Emit,
) -> dict[str, float]:
    """Returns `accuracy`, its 95 % Wilson interval (`low`, `high`) and `log_loss` (nats) on `rows` of `data`.

    `load` returns the model's inputs for rows. A batch that does not fit into memory is split. With n processes, each
    answers every n-th batch; all of them return the whole result.
    """
    import numpy as np
    import torch

    from vlm.evaluation.feed import computed

    _, labels = dataset.ids_and_labels(data)
    truth = np.array([task.labels.index(labels[row]) for row in rows])
    inner, training = model.get_base_model(), model.training
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
    right = int((probabilities.argmax(1) == truth).sum())
    low, high = wilson(right, len(rows))
    of_truth = np.maximum(probabilities[np.arange(len(rows)), truth], np.finfo(np.float64).tiny)
    return {
        "accuracy": right / len(rows),
        "low": low,
        "high": high,
        "log_loss": float(-np.log(of_truth).mean()),
    }
