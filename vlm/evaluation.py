"""The evaluation job: a model's answer to every sample of a split."""

import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vlm import dataset, runtime
from vlm.events import Emit, Progress
from vlm.params import ImageParams, ModelConfig, Params
from vlm.task import Task

if TYPE_CHECKING:
    import pandas as pd

TEST = "data/test.parquet"


@dataclass(frozen=True)
class Evaluation:
    """Asks `task`'s question about every sample of `data`; writes predictions.parquet and runtime.json.

    predictions.parquet has a row a sample, in the order of `data`: id, label, text (what the model wrote), predicted
    (null when the text is no label), probabilities (null: neither way of decoding gives any).
    """

    task: Task
    model: ModelConfig
    image: ImageParams
    decoding: Literal["raw", "outlines"]
    batch_size: int
    max_new_tokens: int
    data: str
    adapter: str | None = None

    @classmethod
    def on_test(cls, params: Params, decoding: Literal["raw", "outlines"], adapter: str | None = None) -> "Evaluation":
        """The evaluation of the test split that `params` asks for."""
        return cls(
            task=params.task,
            model=params.model,
            image=params.image,
            decoding=decoding,
            batch_size=params.evaluation.batch_size,
            max_new_tokens=params.evaluation.max_new_tokens,
            data=TEST,
            adapter=adapter,
        )

    @property
    def inputs(self) -> list[str]:
        """The files and folders that the job reads."""
        return [self.data, *([self.adapter] if self.adapter else [])]

    def run(self, directory: Path, emit: Emit) -> None:
        """Runs, or goes on with what an earlier run left in `directory`: finished batches are not repeated."""
        from vlm import decoding, model

        total = dataset.count(self.data)
        answers = _Answers(directory / "answers.jsonl")
        found = len(answers.texts)
        emit(Progress(found, total, "image"))
        loaded, processor = model.load(self.model, self.image, self.adapter)
        if self.decoding == "raw":
            decode = decoding.raw(loaded, processor, self.max_new_tokens)
        else:
            decode = decoding.outlines(loaded, processor, self.task)
        prompt = processor.apply_chat_template(self.task.conversation(), add_generation_prompt=True, tokenize=False)

        started = time.perf_counter()
        for batch in dataset.iter_batches(self.data, self.batch_size, skip=found):
            inputs = processor(
                images=[[image] for image in batch.images],
                text=[prompt] * len(batch.images),
                padding=True,
                add_special_tokens=False,  # the chat template has written them
                return_tensors="pt",
            ).to(loaded.device, loaded.dtype)
            answers.append(decode(inputs))
            emit(Progress(len(answers.texts), total, "image"))
        measured = runtime.measured(total - found, time.perf_counter() - started)

        _write_predictions(directory / "predictions.parquet", self.task, self.data, answers.texts)
        runtime.write(directory / "runtime.json", measured)


def save(result: Path, name: str) -> "pd.DataFrame":
    """Puts a finished job's files in their places, predictions/<name>.parquet and metrics/runtime/<name>.json.

    Gives the predictions.
    """
    import pandas as pd

    predictions, measured = Path("predictions", f"{name}.parquet"), Path("metrics", "runtime", f"{name}.json")
    for source, target in ((result / "predictions.parquet", predictions), (result / "runtime.json", measured)):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    return pd.read_parquet(predictions)


class _Answers:
    """The finished batches on disk, one line of JSON each; a line torn by a crash counts as not written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.texts: list[str] = []
        if path.exists():
            complete, newline, _ = path.read_text(encoding="utf-8").rpartition("\n")
            path.write_text(complete + newline, encoding="utf-8")
            self.texts = [text for line in complete.splitlines() for text in json.loads(line)]

    def append(self, texts: list[str]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(texts) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.texts += texts


def _write_predictions(path: Path, task: Task, data: str, texts: list[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids, labels = dataset.ids_and_labels(data)
    columns = {
        "id": pa.array(ids, pa.string()),
        "label": pa.array(labels, pa.string()),
        "text": pa.array(texts, pa.string()),
        "predicted": pa.array([task.parse(text) for text in texts], pa.string()),
        "probabilities": pa.nulls(len(ids), pa.list_(pa.float64())),
    }
    pq.write_table(pa.table(columns), path)
