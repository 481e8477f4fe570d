"""The job behind the probe: the frozen vision tower's features of every picture of the task."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from vlm.config.errors import InputError
from vlm.config.events import Emit, Log, Progress
from vlm.config.models import ModelConfig
from vlm.config.params import ImageParams
from vlm.config.task import Task
from vlm.data import dataset, json_files
from vlm.models import runtime
from vlm.probing import features
from vlm.probing.pooling import NoFeatures, pooled
from vlm.probing.record import Record

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel, ProcessorMixin

# Pictures that go through the tower together. A constant, because which ones do affects the last digits of a result.
_AT_ONCE = 32
_UNIT = "picture encoded"
_UNAVAILABLE = "unavailable.txt"  # in the job's folder, if the model gives no features: the reason


@dataclass(frozen=True)
class FeatureExtraction:
    """Computes the pooled features (see vlm.probing.pooling) of all pictures of the three splits.

    Writes features.parquet (see vlm.probing.features), features.json and runtime.json. features.json has the number of
    `dimensions`; it is 0 if the model gives no features, and `unavailable` then says why.
    """

    task: Task
    model: ModelConfig
    image: ImageParams
    train: str = "data/train.parquet"
    validation: str = "data/validation.parquet"
    test: str = "data/test.parquet"

    DATA_PARALLEL: ClassVar = False
    # The files that a stage takes from the job's folder; the rest is intermediate.
    RESULTS: ClassVar = ("features.parquet", "features.json", "runtime.json")
    # The packages of vlm whose code determines the result.
    PACKAGES: ClassVar = ("probing", "evaluation", "models", "data", "config")

    @property
    def inputs(self) -> list[str]:
        """The files that the job reads."""
        return list(self.splits.values())

    @property
    def splits(self) -> dict[str, str]:
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def run(self, directory: Path, emit: Emit) -> None:
        """Runs the job, or resumes an earlier run in `directory`: finished batches are not repeated."""
        self.answer(directory, emit)
        self.merge([directory], directory)

    def answer(self, directory: Path, emit: Emit, shard: tuple[int, int] = (0, 1)) -> None:
        """Computes the batches of shard (i, n), every n-th batch from the i-th on, and records them in `directory`.

        Raises InputError if a split has no rows.
        """
        from vlm.models import loading

        for split, data in self.splits.items():
            if not dataset.count(data):
                raise InputError(
                    f"{data}: has no rows, but the probe needs some in every split; set prepare.{split} in params.yaml "
                    "to a number, or add pictures"
                )
        (directory / _UNAVAILABLE).unlink(missing_ok=True)  # an earlier run's reason, which may be gone
        emit(Progress(0, self._total, _UNIT))
        model, processor = loading.load(self.model, self.image)
        started, computed = time.perf_counter(), 0
        try:
            computed = self._encode(model, processor, directory, emit, shard)
        except NoFeatures as error:
            emit(Log(f"warning: no probe is fitted: {self.model.id!r} gives no vision features: {error}"))
            (directory / _UNAVAILABLE).write_text(str(error), encoding="utf-8")
        runtime.write(directory / "runtime.json", runtime.measured(computed, time.perf_counter() - started))

    def _encode(
        self,
        model: "PreTrainedModel",
        processor: "ProcessorMixin",
        directory: Path,
        emit: Emit,
        shard: tuple[int, int],
    ) -> int:
        """Computes and records the features of the shard's unfinished batches; returns the number of their pictures."""
        import torch

        from vlm.evaluation import batching
        from vlm.evaluation.feed import computed

        first, step = shard
        done = new = 0
        for split, data in self.splits.items():
            load = batching.Loader(data, processor, self.task, model.dtype)
            batches = batching.plan(load.lengths(), _AT_ONCE)[first::step]
            record = Record(directory / split)
            remaining = [batch for batch in batches if not record.finished(batch)]
            done += sum(map(len, batches)) - sum(map(len, remaining))
            emit(Progress(done, self._total, _UNIT))
            for batch, parts in computed(lambda _, inputs: pooled(model, inputs), load, remaining, model, emit):
                record.append(batch, torch.cat(parts).numpy())
                done, new = done + len(batch), new + len(batch)
                emit(Progress(done, self._total, _UNIT))
        return new

    def merge(self, shards: Sequence[Path], directory: Path) -> None:
        """Merges what `answer` left in the folders of all shards, and writes the results to `directory`."""
        reasons = [file.read_text(encoding="utf-8") for shard in shards for file in shard.glob(_UNAVAILABLE)]
        found = {} if reasons else {split: self._merged(split, shards) for split in self.splits}
        features.write(directory / "features.parquet", found)
        values = {"dimensions": 0, "unavailable": reasons[0]} if reasons else {"dimensions": found["test"][1].shape[1]}
        json_files.write(directory / "features.json", values)
        measured = [json.loads((shard / "runtime.json").read_text(encoding="utf-8")) for shard in shards]
        runtime.write(directory / "runtime.json", runtime.merged(measured))

    def _merged(self, split: str, shards: Sequence[Path]) -> "tuple[list[str], np.ndarray]":
        """The ids and features of a split, in its order."""
        import numpy as np

        ids, _ = dataset.ids_and_labels(self.splits[split])
        found = list(Record(*(shard / split for shard in shards)).batches())
        matrix = np.empty((len(ids), found[0][1].shape[1]), np.float32)
        for rows, values in found:
            matrix[rows] = values
        return ids, matrix

    @property
    def _total(self) -> int:
        return sum(dataset.count(data) for data in self.splits.values())
