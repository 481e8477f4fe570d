"""The prompt search as a job: the posterior's answers of many wordings to growing parts of the validation split."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from vlm.config.errors import InputError
from vlm.config.events import Emit, Event, Progress
from vlm.config.models import ModelConfig
from vlm.config.params import ImageParams
from vlm.config.prompts import Wording
from vlm.config.task import Task
from vlm.data import dataset, json_files
from vlm.evaluation import prior
from vlm.evaluation.record import Record
from vlm.models import runtime
from vlm.prompting import halving, table

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

_SMALLEST = 1e-12  # in place of smaller probabilities, so that one sample cannot decide a mean loss


@dataclass(frozen=True)
class PromptSearch:
    """Finds the wording whose posterior has the lowest log loss on the split `data`, by successive halving.

    Writes candidates.csv and finalists.parquet (see vlm/prompting/table.py), search.json and runtime.json. search.json
    has the `samples` of the split, the number of samples of each of the `rounds`, the number of answers `asked` for,
    and two candidates: the `winner` on all samples, and the `best_of_half`, the best one when the last round began. All
    that chose it are samples of the earlier rounds, so what it does on the others is not flattered by the choice.
    """

    task: Task
    model: ModelConfig
    image: ImageParams
    batch_size: int
    data: str
    wordings: tuple[Wording, ...]  # the first is the task's own
    passes: float  # answers to ask for at most, as a multiple of the samples
    # Whether structured_eval corrects the label prior. The search then does, too, with the candidate's mean posterior
    # over the samples that it was asked about: a wording that only shifts the label bias should not win.
    corrected: bool
    seed: int

    DATA_PARALLEL: ClassVar = False
    # The files that a stage takes from the job's folder; the rest is intermediate.
    RESULTS: ClassVar = ("candidates.csv", "finalists.parquet", "search.json", "runtime.json")
    # The packages of vlm whose code determines the result.
    PACKAGES: ClassVar = ("prompting", "evaluation", "models", "data", "config")

    @property
    def inputs(self) -> list[str]:
        """The file that the job reads."""
        return [self.data]

    def answer(self, directory: Path, emit: Emit, shard: tuple[int, int] = (0, 1)) -> None:
        """Runs the search as the first of several containers or processes. Rounds cannot be shared out."""
        if shard[0] == 0:
            self.run(directory, emit)

    def merge(self, shards: Sequence[Path], directory: Path) -> None:
        """Copies the results of the container or process that ran the search."""
        for name in self.RESULTS:
            (directory / name).write_bytes((shards[0] / name).read_bytes())

    def run(self, directory: Path, emit: Emit) -> None:
        """Runs the search, or resumes an earlier run in `directory`: finished batches are not repeated.

        Raises InputError for an empty split, for too few passes, and for a wording that the model cannot be asked.
        """
        import numpy as np

        from vlm.models import loading

        counts = self._rounds()
        order = np.random.default_rng(self.seed).permutation(dataset.count(self.data)).tolist()
        model, processor = loading.load(self.model, self.image)
        self._require_askable(processor)
        started, answered = time.perf_counter(), 0
        results: dict[int, table.Result] = {}
        left, half_best, before = list(range(len(self.wordings))), halving.PRESENT, 0
        for round_, count in enumerate(counts, 1):
            unit = f"answer in round {round_} of {len(counts)}"
            answered += self._ask(directory, left, sorted(order[before:count]), model, processor, emit, unit)
            rows = sorted(order[:count])
            for candidate in left:
                results[candidate] = self._result(directory, candidate, rows, round_)
            verdict = halving.judge({candidate: results[candidate].losses for candidate in left})
            if count == len(order):
                break
            half_best, before = verdict.best, count
            for candidate, reason in verdict.dropped.items():
                results[candidate].outcome = f"round {round_}: {reason}"
            left = [candidate for candidate in left if candidate not in verdict.dropped]
        fresh = sorted(order[before:])
        table.write_candidates(directory / "candidates.csv", self.wordings, results, verdict.best)
        ids, labels = dataset.ids_and_labels(self.data)
        table.write_finalists(directory / "finalists.parquet", self.task, ids, labels, fresh, results, left)
        values = {
            "samples": len(order),
            "rounds": counts,
            "asked": sum(len(result.rows) for result in results.values()),
            "winner": verdict.best,
            "best_of_half": half_best,
        }
        json_files.write(directory / "search.json", values)
        runtime.write(directory / "runtime.json", runtime.measured(answered, time.perf_counter() - started))

    def _rounds(self) -> list[int]:
        """The number of samples that each round has asked about by its end."""
        samples = dataset.count(self.data)
        if samples < 2:
            raise InputError(f"{self.data}: has too few rows for a search; set prepare.validation to a larger number")
        try:
            return halving.sizes(len(self.wordings), samples, self.passes)
        except ValueError as error:
            raise InputError(
                f"params.yaml: prompt_search.passes: {self.passes:g} is too few: {error}; allow more, or "
                "fewer candidates"
            ) from None

    def _require_askable(self, processor: "ProcessorMixin") -> None:
        """Raises InputError for the first wording that the chat template or the tokenizer cannot do."""
        from vlm.evaluation.trie import answer_tokens

        for number, wording in enumerate(self.wordings):
            try:
                answer_tokens(processor, wording.applied(self.task))
            except InputError as error:
                text = json.dumps(wording.model_dump(), ensure_ascii=False)
                raise InputError(f"prompt_search: candidate {number}, {text}: {error}") from None

    def _ask(
        self,
        directory: Path,
        candidates: Sequence[int],
        rows: Sequence[int],
        model: "PreTrainedModel",
        processor: "ProcessorMixin",
        emit: Emit,
        unit: str,
    ) -> int:
        """Asks the candidates about rows of the split; returns the number of answers that were not yet recorded."""
        from vlm.evaluation import decoding
        from vlm.evaluation.posterior import Posterior
        from vlm.evaluation.runner import BatchRunner

        records = {candidate: Record(_file(directory, candidate)) for candidate in candidates}
        missing = {candidate: sum(row not in record.rows for row in rows) for candidate, record in records.items()}
        total = len(candidates) * len(rows)
        done = earlier = total - sum(missing.values())
        emit(Progress(done, total, unit))
        for candidate, record in records.items():
            if missing[candidate]:
                offset = done - record.samples  # the runner counts from what is recorded, also in earlier rounds

                def report(event: Event, offset: int = offset) -> None:
                    emit(Progress(offset + event.done, total, unit) if isinstance(event, Progress) else event)

                task = self.wordings[candidate].applied(self.task)
                posterior = Posterior(model, processor, task)
                runner = BatchRunner(model, processor, task, report, (0, 1))
                decode, equal = decoding.most_probable(posterior, task), posterior.wants_equal_lengths
                runner.run(self.data, self.batch_size, decode, record, rows=rows, equal_lengths=equal)
                done += missing[candidate]
        return done - earlier

    def _result(self, directory: Path, candidate: int, rows: list[int], round_: int) -> table.Result:
        import numpy as np

        record = Record(_file(directory, candidate))
        probabilities = np.array([record.rows[row][1] for row in rows])
        if self.corrected:
            probabilities = prior.apply(probabilities, prior.offsets(prior.estimate("batch", probabilities)))
        _, labels = dataset.ids_and_labels(self.data)
        truth = np.array([self.task.labels.index(labels[row]) for row in rows])
        losses = -np.log(np.maximum(probabilities[np.arange(len(rows)), truth], _SMALLEST))
        return table.Result(round_, rows, probabilities.argmax(1), truth, losses)


def _file(directory: Path, candidate: int) -> Path:
    """The record of a candidate's finished batches in the job's folder."""
    return directory / f"candidate-{candidate}.jsonl"
