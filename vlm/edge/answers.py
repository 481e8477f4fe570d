"""The job of edge_eval: what llama.cpp answers with exported files, in this process, on this machine's CPU."""

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from vlm.config import cores
from vlm.config.errors import InputError
from vlm.config.events import Emit, Progress
from vlm.config.models import ModelConfig
from vlm.config.task import Task
from vlm.data import dataset, json_files, predictions
from vlm.edge.classifier import Classifier
from vlm.edge.llama import Llama
from vlm.evaluation import batching
from vlm.evaluation.record import Answers, Record
from vlm.models import runtime

_RECORD, _GREEDY = "edge.jsonl", "greedy.jsonl"
# Greedy decoding takes as long as the probabilities do, so it is asked about fewer samples.
_GREEDY_SAMPLES = 64


@dataclass(frozen=True)
class EdgeEvaluation:
    """Asks the classifier in `folder` about samples of `data`, one at a time.

    Writes edge.parquet (see vlm/data/predictions.py): the probabilities and the most probable label of each sample,
    with the label prior corrected if the classifier corrects it. edge.json has the `types` and the `bytes` of the
    classifier's files and, with `greedy`, `greedy_agreement`: the fraction of the first 64 samples for which greedy
    decoding under labels.gbnf, which corrects no prior, finds the most probable label. runtime.json has times and
    memory, which are those of this machine's CPU.
    """

    task: Task
    model: ModelConfig  # the one that was exported
    folder: str
    data: str
    samples: int | None  # evenly spaced; None: all
    greedy: bool

    DATA_PARALLEL: ClassVar = False
    # The files that a stage takes from the job's folder; the rest is intermediate.
    RESULTS: ClassVar = ("edge.parquet", "edge.json", "runtime.json")
    # The packages of vlm whose code determines the result.
    PACKAGES: ClassVar = ("edge", "evaluation", "models", "data", "config")

    @property
    def inputs(self) -> list[str]:
        """The file and the folder that the job reads."""
        return [self.data, self.folder]

    def run(self, directory: Path, emit: Emit) -> None:
        """Runs the job, or resumes an earlier run in `directory`: samples that were answered are not asked about again.

        Raises InputError if the folder holds no classifier, or one for other labels than the task's.
        """
        import numpy as np

        classifier = Classifier.load(Path(self.folder))
        if classifier.labels != self.task.labels:
            raise InputError(
                f"{self.folder}: is a classifier for other labels than {self.task.name}'s; export it again"
            )
        record, greedy, rows = Record(directory / _RECORD), Record(directory / _GREEDY), self._rows()
        started = time.perf_counter()
        load_seconds, seconds = self._answer(classifier, record, greedy, rows, emit)
        total = time.perf_counter() - started
        plain = record.probabilities()
        probabilities = [classifier.corrected(np.array(row)).tolist() for row in plain]
        predictions.write(
            directory / "edge.parquet",
            self.task,
            self.data,
            record.texts(),
            probabilities,
            rows=rows,
            plain_probabilities=plain if classifier.offsets else None,
        )
        files = classifier.files.values()
        values = {
            "types": "+".join(file.type for file in files),
            "bytes": sum(file.bytes for file in files),
        }
        if self.greedy:
            pairs = zip(greedy.texts(), record.texts(), strict=False)
            values["greedy_agreement"] = statistics.fmean(
                self.task.parse(one) == self.task.parse(two) for one, two in pairs
            )
        json_files.write(directory / "edge.json", values)
        times = runtime.measured_on_cpu(len(seconds), total, cores.available())
        times |= {"load_seconds": round(load_seconds, 2)}
        if seconds:
            times["median_milliseconds"] = round(1000 * statistics.median(seconds), 1)
        runtime.write(directory / "runtime.json", times)

    def _answer(
        self, classifier: Classifier, record: Record, greedy: Record, rows: list[int], emit: Emit
    ) -> tuple[float, list[float]]:
        """Asks about the samples that `record` lacks; returns the seconds of loading, and those of each sample.

        The record gets the answers as they are after the correction of the prior, and the probabilities before it.
        """
        total, seconds, reader = len(rows), [], dataset.Reader(self.data)
        emit(Progress(record.samples, total, "image"))
        started = time.perf_counter()
        with Llama(Path(self.folder)) as llama:
            load_seconds = time.perf_counter() - started
            for row in rows:
                if row in record.rows:
                    continue
                (sample,) = reader.rows([row])
                image = batching.decoded(sample.image)
                started = time.perf_counter()
                plain = llama.plain_posterior(image)
                seconds.append(time.perf_counter() - started)
                if self.greedy and record.samples < _GREEDY_SAMPLES:
                    greedy.append([row], [Answers([llama.greedy(image)])], image_tokens=0)
                text = self.task.answer(self.task.labels[int(classifier.corrected(plain).argmax())])
                record.append([row], [Answers([text], [plain.tolist()])], image_tokens=0)
                emit(Progress(record.samples, total, "image"))
        return load_seconds, seconds

    def _rows(self) -> list[int]:
        """The numbers of the samples that are asked about."""
        rows = dataset.count(self.data)
        count = min(self.samples or rows, rows)
        return [i * rows // count for i in range(count)]


def write_sweep(path: Path, results: Iterable[Path]) -> None:
    """Writes the answers of several classifiers to one file, all of it or nothing; `results` are their folders.

    Columns: types ("Q4_0+Q8_0") and bytes of the classifier's files, and id, label, predicted and probabilities of a
    sample. No rows if there are no results.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        {
            "types": pa.string(),
            "bytes": pa.int64(),
            "id": pa.string(),
            "label": pa.string(),
            "predicted": pa.string(),
            "probabilities": pa.list_(pa.float64()),
        }
    )
    tables = [schema.empty_table()]
    for folder in results:
        notes, own = json_files.read(folder / "edge.json"), pq.read_table(folder / "edge.parquet")
        columns = {name: pa.array([notes[name]] * len(own)) for name in ("types", "bytes")}
        columns |= {name: own[name] for name in ("id", "label", "predicted", "probabilities")}
        tables.append(pa.table(columns, schema))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(pa.concat_tables(tables), temporary)
    temporary.replace(path)
