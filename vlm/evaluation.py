"""The evaluation job: a model's answer to every sample of a split."""

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from vlm import dataset, runtime
from vlm.events import Emit, Progress
from vlm.params import ImageParams, ModelConfig, Params
from vlm.task import Task

if TYPE_CHECKING:
    import pandas as pd
    from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

    from vlm.decoding import Answers, Decoder

TEST = "data/test.parquet"
VALIDATION = "data/validation.parquet"

Decoding = Literal["raw", "outlines", "posterior"]

# What has been answered, in a job's folder: the samples', validation's, and Outlines' answers
_ANSWERS, _CALIBRATION, _OUTLINES = "answers.jsonl", "calibration.jsonl", "outlines.jsonl"


@dataclass(frozen=True)
class Evaluation:
    """Asks `task`'s question about every sample of `data`; writes predictions.parquet, metrics.json and runtime.json.

    predictions.parquet has a row a sample, in the order of `data`: id, label, text (what the model wrote), predicted
    (null when the text is no label), probabilities (a list over the task's labels; null unless decoding is posterior).
    metrics.json has what the predictions do not tell: image_tokens (a sample's, on average), split_batches (planned
    batches that did not fit into memory and went through in parts) and, with posterior, outlines_agreement: the share
    of the first `outlines_samples` samples on which Outlines' greedy answer is the most probable label.
    With posterior, `calibrate_on` names a split to be answered too, into calibration.parquet.
    """

    task: Task
    model: ModelConfig
    image: ImageParams
    decoding: Decoding
    batch_size: int
    data: str
    max_new_tokens: int = 0  # of raw answers
    outlines_samples: int = 0
    calibrate_on: str | None = None
    adapter: str | None = None

    # What a stage takes out of the job's folder; the rest is unfinished work.
    DATA_PARALLEL: ClassVar = False
    RESULTS: ClassVar = ("predictions.parquet", "calibration.parquet", "metrics.json", "runtime.json")

    @classmethod
    def raw(cls, params: Params, adapter: str | None = None) -> "Evaluation":
        """Free answers to the test split."""
        return cls(
            task=params.task,
            model=params.model,
            image=params.image,
            decoding="raw",
            batch_size=params.evaluation.batch_size,
            data=TEST,
            max_new_tokens=params.evaluation.max_new_tokens,
            adapter=adapter,
        )

    @classmethod
    def structured(cls, params: Params, adapter: str | None = None) -> "Evaluation":
        """Answers to the test split that are labels, as params.yaml's structured_eval has them made."""
        knobs = params.structured_eval
        posterior = knobs.engine == "posterior"
        return cls(
            task=params.task,
            model=params.model,
            image=params.image,
            decoding=knobs.engine,
            batch_size=params.evaluation.batch_size,
            data=TEST,
            outlines_samples=knobs.outlines_samples if posterior else 0,
            calibrate_on=VALIDATION if posterior and knobs.calibrate else None,
            adapter=adapter,
        )

    @property
    def inputs(self) -> list[str]:
        """The files and folders that the job reads."""
        return [self.data, *(path for path in (self.calibrate_on, self.adapter) if path)]

    def run(self, directory: Path, emit: Emit) -> None:
        """Runs, or goes on with what an earlier run left in `directory`: finished batches are not repeated."""
        self.answer(directory, emit)
        self.merge([directory], directory)

    def answer(self, directory: Path, emit: Emit, shard: tuple[int, int] = (0, 1)) -> None:
        """Records the answers to the batches of shard (i, of n), every n-th of the plan, in `directory`."""
        from vlm import decoding, model
        from vlm.posterior import Posterior

        total = dataset.count(self.data)
        emit(Progress(0, total, "image"))
        loaded, processor = model.load(self.model, self.image, self.adapter)
        asking = _Asking(loaded, processor, self.task, self.batch_size, emit, shard)
        equal_lengths = False
        if self.decoding == "raw":
            decode = decoding.raw(loaded, processor, self.max_new_tokens)
        elif self.decoding == "outlines":
            decode = decoding.outlines(loaded, processor, self.task)
        else:
            posterior = Posterior(loaded, processor, self.task)
            decode, equal_lengths = decoding.most_probable(posterior, self.task), posterior.wants_equal_lengths

        started = time.perf_counter()
        record = _Record(directory / _ANSWERS)
        found = record.samples
        asking(self.data, decode, record, equal_lengths=equal_lengths)
        runtime.write(
            directory / "runtime.json", runtime.measured(record.samples - found, time.perf_counter() - started)
        )
        if self.calibrate_on:
            validation = _Record(directory / _CALIBRATION)
            asking(self.calibrate_on, decode, validation, "validation image", equal_lengths=equal_lengths)
        if self.outlines_samples:
            rows = range(min(self.outlines_samples, total))
            greedy = _Record(directory / _OUTLINES)
            asking(self.data, decoding.outlines(loaded, processor, self.task), greedy, "image by Outlines", rows)

    def merge(self, shards: Sequence[Path], directory: Path) -> None:
        """Makes the results, in `directory`, of what `answer` has recorded in the folders of all shards."""
        record = _Record(*(shard / _ANSWERS for shard in shards))
        _write_predictions(directory / "predictions.parquet", self.task, self.data, record)
        metrics = {"image_tokens": record.image_tokens / record.samples, "split_batches": record.split_batches}
        if self.calibrate_on:
            validation = _Record(*(shard / _CALIBRATION for shard in shards))
            _write_predictions(directory / "calibration.parquet", self.task, self.calibrate_on, validation)
        if self.outlines_samples:
            greedy = _Record(*(shard / _OUTLINES for shard in shards))
            pairs = zip(greedy.texts(), record.texts(), strict=False)
            same = [self.task.parse(one) == self.task.parse(other) for one, other in pairs]
            metrics["outlines_agreement"] = sum(same) / len(same)
        (directory / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
        measured = [json.loads((shard / "runtime.json").read_text(encoding="utf-8")) for shard in shards]
        runtime.write(directory / "runtime.json", runtime.together(measured))


def save(result: Path, name: str) -> tuple["pd.DataFrame", dict[str, float]]:
    """Puts a finished job's files in their places, predictions/<name>.parquet and metrics/runtime/<name>.json.

    Gives the predictions and the job's own metrics.
    """
    import pandas as pd

    predictions, measured = Path("predictions", f"{name}.parquet"), Path("metrics", "runtime", f"{name}.json")
    for source, target in ((result / "predictions.parquet", predictions), (result / "runtime.json", measured)):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    return pd.read_parquet(predictions), json.loads((result / "metrics.json").read_text(encoding="utf-8"))


class _Asking:
    """Puts a task's question about samples, a shard's share of them, to one loaded model."""

    def __init__(
        self,
        model: "PreTrainedModel",
        processor: "ProcessorMixin",
        task: Task,
        batch_size: int,
        emit: Emit,
        shard: tuple[int, int],
    ) -> None:
        self._model = model
        self._processor = processor
        # Some models' configurations have it under the older name.
        self._image_token = getattr(model.config, "image_token_id", None) or model.config.image_token_index
        self._task = task
        self._batch_size = batch_size
        self._emit = emit
        self._shard = shard

    def __call__(
        self,
        data: str,
        decode: "Decoder",
        record: "_Record",
        unit: str = "image",
        rows: range | None = None,
        equal_lengths: bool = False,
    ) -> None:
        """Asks about `rows` of `data` (all, if not given), batch by batch, but for those that are in `record`."""
        from vlm import batching

        lengths = batching.prompt_lengths(data, self._processor, self._task)
        lengths = lengths[: len(rows)] if rows is not None else lengths
        # Every n-th, not a run of the plan, for the longest come first and all shards should take as long.
        first, step = self._shard
        batches = batching.plan(lengths, self._batch_size, equal_lengths)[first::step]
        load = batching.Loader(data, self._processor, self._task)
        self._emit(Progress(record.samples, len(lengths), unit))
        left = [batch for batch in batches if batch[0] not in record.rows]
        for batch, inputs in batching.ahead(load, left):
            parts = runtime.in_parts(partial(self._answers, decode, load, batch, inputs), batch, self._emit)
            record.append(batch, [answers for answers, _ in parts], sum(count for _, count in parts))
            self._emit(Progress(record.samples, len(lengths), unit))

    def _answers(
        self,
        decode: "Decoder",
        load: Callable[[Sequence[int]], "BatchFeature"],
        batch: Sequence[int],
        inputs: "BatchFeature",
        rows: Sequence[int],
    ) -> "tuple[Answers, int]":
        """The answers to `rows` and the count of their image tokens; `inputs` are those of the whole `batch`."""
        encoded = inputs if len(rows) == len(batch) else load(rows)
        image_tokens = int((encoded["input_ids"] == self._image_token).sum())
        return decode(encoded.to(self._model.device, self._model.dtype)), image_tokens


class _Record:
    """The finished batches on disk, one line of JSON each; a line torn by a crash counts as not written.

    Of several files, one a shard, it is what they have together.
    """

    def __init__(self, *paths: Path) -> None:
        self._path = paths[0]
        self.rows: dict[int, tuple[str, list[float] | None]] = {}  # by row number: text, probabilities
        self.image_tokens = 0
        self.split_batches = 0
        for path in paths:
            if path.exists():
                complete, newline, torn = path.read_text(encoding="utf-8").rpartition("\n")
                if torn:
                    path.write_text(complete + newline, encoding="utf-8")
                for line in complete.splitlines():
                    self._take(json.loads(line))

    @property
    def samples(self) -> int:
        return len(self.rows)

    def texts(self) -> list[str]:
        """In the order of the rows."""
        return [self.rows[row][0] for row in sorted(self.rows)]

    def probabilities(self) -> list[list[float] | None]:
        return [self.rows[row][1] for row in sorted(self.rows)]

    def append(self, rows: Sequence[int], parts: "Sequence[Answers]", image_tokens: int) -> None:
        """A finished batch, in the parts in which it went through the model."""
        probabilities = [p for part in parts for p in part.probabilities or [None] * len(part.texts)]
        entry = {
            "rows": list(rows),
            "texts": [text for part in parts for text in part.texts],
            "probabilities": probabilities,
            "image_tokens": image_tokens,
            "parts": len(parts),
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._take(entry)

    def _take(self, entry: dict) -> None:
        answers = zip(entry["texts"], entry["probabilities"], strict=True)
        self.rows.update(zip(entry["rows"], answers, strict=True))
        self.image_tokens += entry["image_tokens"]
        self.split_batches += entry["parts"] > 1


def _write_predictions(path: Path, task: Task, data: str, record: _Record) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids, labels = dataset.ids_and_labels(data)
    texts = record.texts()
    columns = {
        "id": pa.array(ids, pa.string()),
        "label": pa.array(labels, pa.string()),
        "text": pa.array(texts, pa.string()),
        "predicted": pa.array([task.parse(text) for text in texts], pa.string()),
        "probabilities": pa.array(record.probabilities(), pa.list_(pa.float64())),
    }
    pq.write_table(pa.table(columns), path)
