"""The evaluation job: a model's answers to every sample of a split, raw or structured or both."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from vlm.config.events import Emit, Log, Progress
from vlm.config.models import ModelConfig
from vlm.config.params import Calibrate, ImageParams, Params, Prior
from vlm.config.task import Task
from vlm.data import dataset, json_files, predictions
from vlm.evaluation import calibration, prior
from vlm.evaluation.record import Record
from vlm.models import runtime

TRAIN = "data/train.parquet"
VALIDATION = "data/validation.parquet"
TEST = "data/test.parquet"

Engine = Literal["posterior", "outlines"]

# Records of finished batches in a job's folder: raw and structured answers, structured answers to validation, those
# that the label prior is estimated from, and those of Outlines. The first three become results of the same name.
_RAW, _STRUCTURED, _VALIDATION = "raw.jsonl", "structured.jsonl", "structured_validation.jsonl"
_PRIOR, _OUTLINES = "prior.jsonl", "outlines.jsonl"


@dataclass(frozen=True)
class Evaluation:
    """Asks `task`'s question about every sample of `data`: with free answers (raw), restricted to the labels, or both.

    Writes raw.parquet or structured.parquet or both (see vlm/data/predictions.py), and structured_validation.parquet,
    structured answers to the split `validation`, on which confidence can be calibrated and thresholds chosen. With
    `prior`, the label prior is estimated from pictures of the split `train`, without their labels, and structured
    answers are those of the corrected probabilities (vlm/evaluation/prior.py).

    Each has a .json file of what the predictions do not contain: image_tokens (mean per sample); prior, the label prior
    and what it belongs to; outlines_agreement, the fraction of the first `outlines_samples` samples for which Outlines'
    greedy answer is the most probable label before the correction; and with `calibrate` what was fitted on
    `validation` (vlm/evaluation/calibration.py). All but the first need the engine posterior. Also writes runtime.json.
    """

    task: Task
    model: ModelConfig
    image: ImageParams
    batch_size: int
    data: str
    raw_tokens: int | None = None  # maximum length of raw answers; None: no raw answers
    raw_batch_size: int | None = None  # None: batch_size
    engine: Engine | None = None  # for structured answers; None: no structured answers
    outlines_samples: int = 0
    validation: str | None = None  # None: no answers to validation
    calibrate: Calibrate = "none"
    adapter: str | None = None
    prior: Prior = "none"
    prior_samples: int = 0  # rows of `train` at most: whose answers are averaged, or whose sizes blank pictures take
    train: str | None = None  # needed with a prior
    seed: int = 0  # of the sample of `train`, and of blank pictures

    DATA_PARALLEL: ClassVar = False
    # The files that a stage takes from the job's folder; the rest is intermediate.
    RESULTS: ClassVar = (
        *("raw.parquet", "raw.json", "structured.parquet", "structured.json"),
        *("structured_validation.parquet", "structured_validation.json", "runtime.json"),
    )
    # The packages of vlm whose code determines the result.
    PACKAGES: ClassVar = ("evaluation", "models", "data", "config")

    @classmethod
    def of(
        cls, params: Params, raw: bool = False, structured: bool = False, adapter: str | None = None
    ) -> "Evaluation":
        """The job for the test split, with the settings of evaluation and structured_eval in params.yaml.

        Structured answers are also those to the validation split. With an adapter, final_eval has the method of the
        prior. The engine outlines gives no probabilities, so prior and calibrate have no effect with it.
        """
        knobs = params.structured_eval
        posterior = structured and knobs.engine == "posterior"
        method = (params.final_eval if adapter else knobs).prior if posterior else "none"
        return cls(
            task=params.task,
            model=params.model,
            image=params.image,
            batch_size=params.evaluation.batch_size,
            data=TEST,
            raw_tokens=params.evaluation.max_new_tokens if raw else None,
            raw_batch_size=params.evaluation.raw_batch_size if raw else None,
            engine=knobs.engine if structured else None,
            outlines_samples=knobs.outlines_samples if posterior else 0,
            validation=VALIDATION if structured else None,
            calibrate=knobs.calibrate if posterior else "none",
            adapter=adapter,
            prior=method,
            prior_samples=knobs.prior_samples if method != "none" else 0,
            train=TRAIN if method != "none" else None,
            seed=params.seed if method != "none" else 0,
        )

    @property
    def inputs(self) -> list[str]:
        """The files and folders that the job reads."""
        return [self.data, *(path for path in (self.validation, self.adapter, self.train) if path)]

    def run(self, directory: Path, emit: Emit) -> None:
        """Runs the job, or resumes an earlier run in `directory`: finished batches are not repeated."""
        self.answer(directory, emit)
        self.merge([directory], directory)

    def answer(self, directory: Path, emit: Emit, shard: tuple[int, int] = (0, 1)) -> None:
        """Answers the batches of shard (i, n), every n-th batch from the i-th on, and records them in `directory`."""
        from vlm.evaluation import decoding
        from vlm.evaluation.posterior import Posterior
        from vlm.evaluation.runner import BatchRunner
        from vlm.evaluation.trie import answer_tokens
        from vlm.models import loading

        total = dataset.count(self.data)
        emit(Progress(0, total, self._unit(_RAW if self.raw_tokens else _STRUCTURED)))
        model, processor = loading.load(self.model, self.image, self.adapter)
        runner = BatchRunner(model, processor, self.task, emit, shard)
        timings: dict[str, tuple[int, float]] = {}  # by record: samples answered by this run, seconds

        def run(name: str, data: str, decode: decoding.Decoder, **options: Any) -> None:
            record = Record(directory / name)
            before, started = record.samples, time.perf_counter()
            batch_size = self.raw_batch_size or self.batch_size if name == _RAW else self.batch_size
            runner.run(data, batch_size, decode, record, self._unit(name), **options)
            timings[name] = record.samples - before, time.perf_counter() - started

        if self.raw_tokens:
            shortest = min(map(len, answer_tokens(processor, self.task)))
            if self.raw_tokens < shortest:
                emit(
                    Log(
                        f"warning: params.yaml: evaluation.max_new_tokens: {self.raw_tokens} is too few for any answer "
                        f"to be complete; the shortest has {shortest} tokens"
                    )
                )
            run(_RAW, self.data, decoding.raw(model, processor, self.raw_tokens))
        if self.engine:
            if self.engine == "posterior":
                posterior = Posterior(model, processor, self.task)
                decode, equal = decoding.most_probable(posterior, self.task), posterior.wants_equal_lengths
            else:
                decode, equal = decoding.outlines(model, processor, self.task), False
            run(_STRUCTURED, self.data, decode, equal_lengths=equal)
            if self.validation:
                run(_VALIDATION, self.validation, decode, equal_lengths=equal)
            if self.train:
                data, rows = self._prior_rows(directory)
                run(_PRIOR, data, decode, rows=rows, equal_lengths=equal)
        if self.outlines_samples:
            rows = range(min(self.outlines_samples, total))
            run(_OUTLINES, self.data, decoding.outlines(model, processor, self.task), rows=rows)
        measured = {name: timing for name, timing in timings.items() if name != _OUTLINES}
        samples, seconds = (sum(values) for values in zip(*measured.values(), strict=True))
        of_each = {f"{name.removesuffix('.jsonl')}_seconds": round(s, 2) for name, (_, s) in measured.items()}
        runtime.write(
            directory / "runtime.json", runtime.measured(samples, seconds) | (of_each if len(of_each) > 1 else {})
        )

    def _prior_rows(self, directory: Path) -> tuple[str, list[int]]:
        """The split and the rows that the prior is estimated from; blank pictures are written to `directory`."""
        assert self.train is not None
        rows = prior.sample(dataset.count(self.train), self.prior_samples, self.seed)
        if self.prior == "batch":
            return self.train, rows
        blank = directory / "blank.parquet"
        prior.write_blank(blank, self.train, rows, self.task.labels[0], self.seed)
        return str(blank), list(range(dataset.count(blank)))

    def merge(self, shards: Sequence[Path], directory: Path) -> None:
        """Merges the records that `answer` left in the folders of all shards, and writes the results to `directory`."""
        raw, structured = self.data if self.raw_tokens else None, self.data if self.engine else None
        entry = self._prior(shards)
        split_batches = 0
        for name, data in ((_RAW, raw), (_STRUCTURED, structured), (_VALIDATION, self.validation)):
            if data is None:
                continue
            record = Record(*(shard / name for shard in shards))
            split_batches += record.split_batches
            kind = name.removesuffix(".jsonl")
            texts, probabilities, plain = record.texts(), record.probabilities(), None
            values = {"image_tokens": record.image_tokens / record.samples} if record.samples else {}
            if name != _RAW and entry and record.samples:
                plain = probabilities
                texts, probabilities = self._corrected(plain, entry)
                values["prior"] = entry
            path = directory / f"{kind}.parquet"
            predictions.write(path, self.task, data, texts, probabilities, plain_probabilities=plain)
            if name == _STRUCTURED:
                values |= self._agreement(record.texts(), shards) | self._calibration(shards, entry)
            json_files.write(directory / f"{kind}.json", values)
        measured = [json.loads((shard / "runtime.json").read_text(encoding="utf-8")) for shard in shards]
        # split_batches, the batches that did not fit into memory, depends on the device.
        runtime.write(directory / "runtime.json", runtime.merged(measured) | {"split_batches": split_batches})

    def _prior(self, shards: Sequence[Path]) -> dict[str, Any] | None:
        """The entry `prior` of the .json files, with what it belongs to; None without one."""
        if self.prior == "none":
            return None
        estimated = prior.estimate(self.prior, Record(*(shard / _PRIOR for shard in shards)).probabilities())
        return estimated | prior.belongs_to(self.task, self.model, self.adapter)

    def _corrected(
        self, plain: Sequence[Sequence[float]], entry: dict[str, Any]
    ) -> tuple[list[str], list[list[float]]]:
        """The texts and the probabilities of the answers after the label prior is divided out of `plain`."""
        corrected = prior.apply(plain, prior.offsets(entry))
        texts = [self.task.answer(self.task.labels[label]) for label in corrected.argmax(1).tolist()]
        return texts, corrected.tolist()

    def _agreement(self, texts: Sequence[str], shards: Sequence[Path]) -> dict[str, float]:
        if not self.outlines_samples:
            return {}
        greedy = Record(*(shard / _OUTLINES for shard in shards)).texts()
        same = [self.task.parse(one) == self.task.parse(other) for one, other in zip(greedy, texts, strict=False)]
        return {"outlines_agreement": sum(same) / len(same)}

    def _calibration(self, shards: Sequence[Path], entry: dict[str, Any] | None) -> dict[str, Any]:
        if not self.validation:
            return {}
        _, labels = dataset.ids_and_labels(self.validation)
        truth = [self.task.labels.index(label) for label in labels]
        probabilities = Record(*(shard / _VALIDATION for shard in shards)).probabilities()
        if entry and truth:
            probabilities = prior.apply(probabilities, prior.offsets(entry)).tolist()
        return calibration.fit(self.calibrate, probabilities, truth)

    def _unit(self, name: str) -> str:
        """What the progress bar counts; final_eval's two passes over the test split have different names."""
        both = self.raw_tokens and self.engine
        names = {_VALIDATION: "validation image", _PRIOR: "image for the prior", _OUTLINES: "image by Outlines"}
        names |= {_RAW: "raw answer", _STRUCTURED: "structured answer"} if both else {}
        return names.get(name, "image")
