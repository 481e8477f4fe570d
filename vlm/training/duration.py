"""How long to train if params.yaml does not say, `finetune.epochs: null`: longer if the labels are new to the model.

A model that already tells most labels apart needs to see each picture a few times only. One that has never written the
labels (part numbers, names in another language) has to connect them with what it sees first. docs/fine-tuning.md has
the measurements behind the numbers.
"""

import math
from typing import TYPE_CHECKING

from vlm.config.events import Emit, Log, Progress
from vlm.data import dataset

if TYPE_CHECKING:
    from vlm.training.job import FineTuning, Loaded

# At least so many epochs, and samples that training sees in all, if the labels are known and if they are new
KNOWN, NEW = (2, 3200), (8, 6400)
_TELLS_MOST = 0.5  # validation accuracy of the untrained model from which on the labels count as known


def epochs(rows: int, known: bool) -> int:
    """The number of epochs for `rows` training rows; `known`: whether the untrained model tells most labels apart."""
    least, samples = KNOWN if known else NEW
    return max(least, math.ceil(samples / max(1, rows)))


def measured(job: "FineTuning", loaded: "Loaded", emit: Emit) -> int:
    """The number of epochs for a job, from a validation pass of the model that it begins with; logs both."""
    from vlm.evaluation import batching
    from vlm.training import trainer
    from vlm.training.validation import validate, validation_rows

    model, processor = loaded
    rows = validation_rows(job.validation, job.finetune.eval_samples, job.seed)
    load = batching.Loader(job.validation, processor, job.task, model.dtype)
    size, unit = job.finetune.batch_size, "validation image"
    emit(Progress(0, len(rows), unit))
    found = validate(model, processor, job.task, job.validation, rows, load, size, trainer.processes(), emit)
    emit(Progress(len(rows), len(rows), unit))
    number = epochs(dataset.count(job.train), found["accuracy"] >= _TELLS_MOST)
    emit(
        Log(
            f"before training: {found['accuracy']:.1%} of {len(rows)} validation samples right; {number} epochs "
            "(finetune.epochs: null)"
        )
    )
    return number
