"""The robustness job: structured answers of the base and the fine-tuned model to corrupted pictures."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from vlm.config.events import Emit, Progress
from vlm.config.models import ModelConfig
from vlm.config.params import ImageParams, RobustnessParams
from vlm.config.task import Task
from vlm.data import dataset
from vlm.evaluation.record import Answers, Record
from vlm.models import runtime
from vlm.robustness import answers

BASE, TUNED = "base", "fine-tuned"


@dataclass(frozen=True)
class Robustness:
    """Asks the model, without and with `adapter`, about samples of `data`: as they are, and under every corruption.

    Answers are structured, by the posterior. Writes answers.parquet (see vlm/robustness/answers.py) and runtime.json.
    """

    task: Task
    model: ModelConfig
    image: ImageParams
    batch_size: int
    data: str
    adapter: str
    robustness: RobustnessParams

    DATA_PARALLEL: ClassVar = False
    # The files that a stage takes from the job's folder; the rest is intermediate.
    RESULTS: ClassVar = ("answers.parquet", "runtime.json")
    # The packages of vlm whose code determines the result.
    PACKAGES: ClassVar = ("robustness", "evaluation", "models", "data", "config")

    @property
    def inputs(self) -> list[str]:
        """The file and the folder that the job reads."""
        return [self.data, self.adapter]

    def run(self, directory: Path, emit: Emit) -> None:
        """Runs the job, or resumes an earlier run in `directory`: finished batches are not repeated."""
        self.answer(directory, emit)
        self.merge([directory], directory)

    def answer(self, directory: Path, emit: Emit, shard: tuple[int, int] = (0, 1)) -> None:
        """Answers the batches of shard (i, n), every n-th batch from the i-th on, and records them in `directory`."""
        records = {model: Record(_file(directory, model)) for model in (BASE, TUNED)}
        total = len(records) * len(self._samples()) * len(self._conditions())

        def report() -> None:
            emit(Progress(sum(record.samples for record in records.values()), total, "image"))

        report()
        answered, seconds = 0, 0.0
        # The adapter first: if it does not fit the model, we find out at once.
        for model, adapter in ((TUNED, self.adapter), (BASE, None)):
            before = records[model].samples
            seconds += self._answer_with(adapter, records[model], shard, emit, report)
            answered += records[model].samples - before
        runtime.write(directory / "runtime.json", runtime.measured(answered, seconds))

    def _answer_with(
        self, adapter: str | None, record: Record, shard: tuple[int, int], emit: Emit, report: Callable[[], None]
    ) -> float:
        """Answers the batches that `record` lacks with the model and an adapter; returns the seconds without loading.

        Calls `report` after each batch.
        """
        from vlm.evaluation import batching, decoding
        from vlm.evaluation.feed import computed
        from vlm.evaluation.posterior import Posterior
        from vlm.models import loading
        from vlm.robustness.loader import CorruptedLoader

        model, processor = loading.load(self.model, self.image, adapter)
        started = time.perf_counter()
        samples, conditions = self._samples(), self._conditions()
        load = CorruptedLoader(self.data, samples, conditions, processor, self.task, model.dtype)
        posterior = Posterior(model, processor, self.task)
        decode = decoding.most_probable(posterior, self.task)
        lengths = load.lengths(range(len(samples) * len(conditions)))
        first, step = shard
        batches = batching.plan(lengths, self.batch_size, posterior.wants_equal_lengths)[first::step]
        remaining = [batch for batch in batches if batch[0] not in record.rows]

        def answer(rows: Sequence[int], inputs: dict) -> Answers:
            return Answers(decode(inputs).texts)  # nothing reads the probabilities

        for batch, parts in computed(answer, load, remaining, model, emit):
            record.append(batch, parts, image_tokens=0)
            report()
        return time.perf_counter() - started

    def merge(self, shards: Sequence[Path], directory: Path) -> None:
        """Merges the records that `answer` left in the folders of all shards, and writes the results to `directory`."""
        ids, labels = dataset.ids_and_labels(self.data)
        samples, conditions = self._samples(), self._conditions()
        rows, split_batches = [], 0
        for model in (BASE, TUNED):
            record = Record(*(_file(shard, model) for shard in shards))
            split_batches += record.split_batches
            for number, text in enumerate(record.texts()):
                sample, condition = samples[number // len(conditions)], conditions[number % len(conditions)]
                rows.append((model, *condition, ids[sample], labels[sample], self.task.parse(text)))
        answers.write(directory / "answers.parquet", rows)
        measured = [json.loads((shard / "runtime.json").read_text(encoding="utf-8")) for shard in shards]
        # split_batches, the batches that did not fit into memory, depends on the device.
        runtime.write(directory / "runtime.json", runtime.merged(measured) | {"split_batches": split_batches})

    def _samples(self) -> list[int]:
        """The rows of the split that are used, evenly spaced."""
        rows = dataset.count(self.data)
        count = min(self.robustness.samples or rows, rows)
        return [i * rows // count for i in range(count)]

    def _conditions(self) -> list[tuple[str, int]]:
        """(corruption, severity), the original pictures first."""
        knobs = self.robustness
        return [answers.CLEAN, *((name, severity) for name in knobs.corruptions for severity in knobs.severities)]


def _file(directory: Path, model: str) -> Path:
    """The record of a model's finished batches in a job's folder."""
    return directory / f"{model}.jsonl"
