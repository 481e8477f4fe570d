"""Runs the samples of a split through a loaded model, batch by batch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlm.config.events import Emit, Progress
from vlm.config.task import Task
from vlm.data import dataset
from vlm.evaluation import batching
from vlm.evaluation.feed import computed
from vlm.evaluation.record import Answers, Record
from vlm.models import loading

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, ProcessorMixin

    from vlm.evaluation.decoding import Decoder


class BatchRunner:
    """Runs the batches of one shard (i, n) of an evaluation on one loaded model."""

    def __init__(
        self,
        model: "PreTrainedModel",
        processor: "ProcessorMixin",
        task: Task,
        emit: Emit,
        shard: tuple[int, int],
    ) -> None:
        self._model = model
        self._processor = processor
        self._image_token = loading.image_token(model)
        self._task = task
        self._emit = emit
        self._shard = shard
        self._loaders: dict[str, batching.Loader] = {}  # by split

    def run(
        self,
        data: str,
        batch_size: int,
        decode: "Decoder",
        record: Record,
        unit: str = "image",
        rows: Sequence[int] | None = None,
        equal_lengths: bool = False,
    ) -> None:
        """Answers the `rows` of `data` (by default all), and skips the batches that `record` already has."""
        load = self._loaders.setdefault(data, batching.Loader(data, self._processor, self._task, self._model.dtype))
        rows = range(dataset.count(data)) if rows is None else rows
        lengths = load.lengths(rows)
        # Every n-th batch, not a contiguous range, because the longest come first and shards should take equally long.
        first, step = self._shard
        planned = batching.plan(lengths, batch_size, equal_lengths)[first::step]
        batches = [[rows[place] for place in batch] for batch in planned]
        self._emit(Progress(record.samples, len(lengths), unit))
        remaining = [batch for batch in batches if batch[0] not in record.rows]

        def answer(batch: Sequence[int], inputs: "dict[str, torch.Tensor]") -> "tuple[Answers, int]":
            answers = decode(inputs)
            return answers, int((inputs["input_ids"] == self._image_token).sum())

        for batch, parts in computed(answer, load, remaining, self._model, self._emit):
            record.append(batch, [answers for answers, _ in parts], sum(count for _, count in parts))
            self._emit(Progress(record.samples, len(lengths), unit))
