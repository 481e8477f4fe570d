"""What each method reaches with N labelled pictures: runs the jobs, and counts the right answers to the test split.

- structured: the base model's posterior, which needs no labels
- structured + prior: with the label prior corrected, which is estimated from `structured_eval.prior_samples` pictures
  of train and validation without their labels (vlm/evaluation/prior.py, method batch)
- structured + prior + bias: and with a bias for each label, fitted on the labelled pictures by cross-validation
- linear probe: logistic regression on frozen vision features, its penalty chosen by cross-validation
- fine-tuned: `finetune` as in params.yaml; a fifth of the labelled pictures choose the checkpoint, the others train
- fine-tuned + prior: with the label prior corrected, as above

The labelled pictures are drawn from train and validation. A method with N labels has seen N labels in all.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import filelock
import platformdirs

from vlm import compute
from vlm.compute import files, local
from vlm.config.models import ModelConfig
from vlm.config.params import FinetuneParams, ImageParams, Params
from vlm.config.task import Task
from vlm.data import dataset, json_files
from vlm.evaluation import TEST, TRAIN, VALIDATION, Evaluation, calibration, prior
from vlm.probing import FeatureExtraction, features, heads
from vlm.training import FineTuning

if TYPE_CHECKING:
    import numpy as np

FEWEST = 5  # labelled pictures: every fifth of them is for validation
STRUCTURED, PRIOR, BIAS = "structured", "structured + prior", "structured + prior + bias"
PROBE, TUNED, TUNED_PRIOR = "linear probe", "fine-tuned", "fine-tuned + prior"
METHODS = (STRUCTURED, PRIOR, BIAS, PROBE, TUNED, TUNED_PRIOR)


@dataclass(frozen=True)
class Point:
    """`right` of the test samples, answered by a method that has seen `labels` labelled pictures."""

    method: str
    labels: int
    seed: int
    right: int


def measured(params: Params, sizes: Sequence[int], seeds: int) -> Iterator[Point]:
    """Measures every method with every size (0: those that need no labels) and seed, or reads what is recorded."""
    with Measurements.opened(params) as made:
        yield Point(STRUCTURED, 0, 0, made.structured())
        for seed in range(seeds):
            yield Point(PRIOR, 0, seed, made.with_prior(seed))
            for size in filter(None, sizes):
                yield Point(BIAS, size, seed, made.with_bias(size, seed))
                right = made.probe(size, seed)
                if right is not None:
                    yield Point(PROBE, size, seed, right)
                plain, corrected = made.fine_tuned(size, seed)
                yield Point(TUNED, size, seed, plain)
                yield Point(TUNED_PRIOR, size, seed, corrected)


@dataclass(frozen=True)
class LearningCurve:
    """What all measurements depend on: its key (see `local.key`) is the name of their folder."""

    task: Task
    model: ModelConfig
    image: ImageParams
    finetune: FinetuneParams
    batch_size: int
    prior_samples: int
    code: str  # the hash of this file

    inputs: ClassVar = (TRAIN, VALIDATION, TEST)
    PACKAGES: ClassVar = ("probing", "training", "evaluation", "models", "data", "config")


class Measurements:
    """Runs the jobs, and counts the right answers. What is counted is recorded in `directory` and not run again."""

    def __init__(self, params: Params, subject: LearningCurve, directory: Path, stack: ExitStack) -> None:
        self._params = params
        self._subject = subject
        self._directory = directory
        self._stack = stack  # of jobs whose results are used until the end
        self._pool = directory / "pool.parquet"  # the rows of train, then those of validation

    @classmethod
    @contextmanager
    def opened(cls, params: Params) -> "Iterator[Measurements]":
        """The measurements for params.yaml and data/, in a folder of their own. Two processes take turns."""
        subject = LearningCurve(
            task=params.task,
            model=params.model,
            image=params.image,
            finetune=params.finetune,
            batch_size=params.evaluation.batch_size,
            prior_samples=params.structured_eval.prior_samples,
            code=files.sha256(Path(__file__)),
        )
        # Among the unfinished work of jobs, which is forgotten after a while
        directory = platformdirs.user_cache_path("vlm-pipeline") / "jobs" / local.key(subject)
        directory.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{directory}.lock"), ExitStack() as stack:
            made = cls(params, subject, directory, stack)
            rows = (row for path in (TRAIN, VALIDATION) for row in _rows(path))
            dataset.write(made._pool, rows)
            yield made
            made._pool.unlink()

    def structured(self) -> int:
        return self._recorded("structured", lambda: [self._right(self._posteriors[0])])[0]

    def with_prior(self, seed: int) -> int:
        return self._recorded(f"prior-{seed}", lambda: [self._right(self._corrected(seed)[0])])[0]

    def with_bias(self, size: int, seed: int) -> int:
        def count() -> list[int]:
            test, pool = self._corrected(seed)
            rows = self._drawn(size, seed)
            fitted = calibration.fit("bias", pool[rows].tolist(), self._pool_truth[rows].tolist())
            return [self._right(calibration.apply(test.tolist(), fitted))]

        return self._recorded(f"bias-{size}-{seed}", count)[0]

    def probe(self, size: int, seed: int) -> int | None:
        """None if the model gives no vision features."""

        def count() -> list[int]:
            if self._features is None:
                return []
            test, pool = self._features
            rows = self._drawn(size, seed)
            drawn = heads.Samples(pool[rows], self._pool_truth[rows], len(self._subject.task.labels))
            return [self._right(heads.linear(drawn, heads.cross_validated_inverse_penalty(drawn))(test))]

        found = self._recorded(f"probe-{size}-{seed}", count)
        return found[0] if found else None

    def fine_tuned(self, size: int, seed: int) -> list[int]:
        """The right answers without and with the label prior corrected."""

        def count() -> list[int]:
            reader, rows = dataset.Reader(self._pool), self._drawn(size, seed).tolist()
            chosen = {"validation": rows[FEWEST - 1 :: FEWEST]}
            chosen["train"] = [row for row in rows if row not in chosen["validation"]]
            paths = {split: self._directory / f"{size}-{seed}-{split}.parquet" for split in chosen}
            for split, path in paths.items():
                dataset.write(path, reader.rows(chosen[split]))
            subject = self._subject
            job = FineTuning(
                task=subject.task,
                model=subject.model,
                image=subject.image,
                finetune=subject.finetune,
                seed=seed,
                train=str(paths["train"]),
                validation=str(paths["validation"]),
            )
            # Inside the block, so that a killed run still finds the adapter
            with self._run(job) as trained:
                plain, corrected = self._answers(str(trained / "adapter"), seed)
            for path in paths.values():
                path.unlink()
            return [self._right(plain), self._right(corrected)]

        return self._recorded(f"finetune-{size}-{seed}", count)

    def _recorded(self, name: str, count: Callable[[], list[int]]) -> list[int]:
        path = self._directory / f"{name}.json"
        if not path.exists():
            json_files.write(path, {"right": count()})
            print(f"learning-curve: {name.replace('-', ' ')} is measured", flush=True)
        return json_files.read(path)["right"]

    def _run(self, job: compute.Job) -> AbstractContextManager[Path]:
        return compute.run(job, self._params.compute, self._params.modal)

    def _right(self, probabilities: "np.ndarray") -> int:
        return int((probabilities.argmax(1) == self._truth(TEST)).sum())

    def _truth(self, path: str | Path) -> "np.ndarray":
        import numpy as np

        return np.array([self._subject.task.labels.index(label) for label in dataset.ids_and_labels(path)[1]])

    @cached_property
    def _pool_truth(self) -> "np.ndarray":
        return self._truth(self._pool)

    def _drawn(self, size: int, seed: int) -> "np.ndarray":
        """`size` rows of the pool in random order. A smaller draw with the same seed is the beginning of a larger."""
        import numpy as np

        return np.random.default_rng((seed, 1)).permutation(dataset.count(self._pool))[:size]

    @cached_property
    def _posteriors(self) -> "tuple[np.ndarray, np.ndarray]":
        """The base model's probabilities, (samples, labels), for test and the pool."""
        answers = self._stack.enter_context(self._run(self._evaluation(validation=str(self._pool))))
        test, pool = answers / "structured.parquet", answers / "structured_validation.parquet"
        return _column(test, "probabilities"), _column(pool, "probabilities")

    def _corrected(self, seed: int) -> "tuple[np.ndarray, np.ndarray]":
        """The same with the label prior corrected, which is estimated as Evaluation does."""
        test, pool = self._posteriors
        rows = prior.sample(len(pool), self._subject.prior_samples, seed)
        offsets = prior.offsets(prior.estimate("batch", pool[rows].tolist()))
        return prior.apply(test, offsets), prior.apply(pool, offsets)

    def _answers(self, adapter: str, seed: int) -> "tuple[np.ndarray, np.ndarray]":
        """A fine-tuned model's probabilities for test, without and with the label prior corrected."""
        job = self._evaluation(
            adapter=adapter,
            prior="batch",
            prior_samples=self._subject.prior_samples,
            train=str(self._pool),
            seed=seed,
        )
        with self._run(job) as answers:
            test = answers / "structured.parquet"
            return _column(test, "plain_probabilities"), _column(test, "probabilities")

    def _evaluation(self, **values: Any) -> Evaluation:
        subject = self._subject
        return Evaluation(
            task=subject.task,
            model=subject.model,
            image=subject.image,
            batch_size=subject.batch_size,
            data=TEST,
            engine="posterior",
            **values,
        )

    @cached_property
    def _features(self) -> "tuple[np.ndarray, np.ndarray] | None":
        """The vision features, (samples, dimensions), of test and the pool; None if the model gives none."""
        import numpy as np

        subject = self._subject
        job = FeatureExtraction(task=subject.task, model=subject.model, image=subject.image)
        found = features.read(self._stack.enter_context(self._run(job)) / "features.parquet")
        return (found["test"], np.concatenate([found["train"], found["validation"]])) if found else None


def _rows(path: str) -> Iterator[dataset.Row]:
    reader = dataset.Reader(path)
    for number in range(dataset.count(path)):
        yield from reader.rows([number])


def _column(path: Path, name: str) -> "np.ndarray":
    import numpy as np
    import pyarrow.parquet as pq

    return np.array(pq.read_table(path, columns=[name]).column(name).to_pylist())
