"""What correcting the label prior gains, and where it hurts.

    python -m benchmarks.prior --work FOLDER --adapter models/adapter

Renders car_badges at two severities, takes the digits of scikit-learn (folders zero ... nine), and asks the embedded
model, and on the badges a fine-tuned adapter if there is one, about training and test pictures. All else is arithmetic
on these posteriors. Prints, and writes to benchmarks/prior.json, the accuracy on test for each

- frequencies: of the labels in the training sample and in test: equal, or Zipf's (the i-th most frequent label of L has
  a share proportional to 1 / i, in 20 random orders; test is weighted, the training sample is drawn);
- prior: none, batch with a strength and a number of training pictures (the mean of 20 draws), blank, and `bias`, which
  has also seen the labels of 160 validation pictures (vlm/evaluation/calibration.py).

`worst` and `best` are the lowest and the highest gain over `none` in a draw. Ten minutes on one core. Pictures and
posteriors stay in FOLDER, and a second run with it does not make them again.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vlm.config import load_params
from vlm.config.params import Params, PrepareParams
from vlm.config.task import Task
from vlm.evaluation import Evaluation, calibration, prior
from vlm.sources import preparation

DRAWS = 20
STRENGTHS, SAMPLES = (0.5, 0.75, 1.0), (64, 160, 256, 1600)
LABELLED = 160
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Answers:
    """Posteriors of a model, (samples, labels), and the true label's column of each sample."""

    train: np.ndarray
    train_truth: np.ndarray
    validation: np.ndarray
    validation_truth: np.ndarray
    test: np.ndarray
    test_truth: np.ndarray
    blank: np.ndarray

    @property
    def labels(self) -> int:
        return self.test.shape[1]


def badges(params: Params, severity: float) -> Task:
    source = params.task.source
    harder = source.badges.model_copy(update={"severity": severity})
    return params.task.model_copy(update={"source": source.model_copy(update={"badges": harder})})


def digits(folder: Path) -> Task:
    """scikit-learn's 1,797 scanned digits, enlarged to 128 pixels."""
    from sklearn.datasets import load_digits

    found = load_digits()
    for number, (pixels, digit) in enumerate(zip(found.images, found.target, strict=True)):
        path = folder / DIGITS[digit] / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray((pixels / 16 * 255).astype(np.uint8)).convert("RGB")
        picture.resize((128, 128), Image.Resampling.BICUBIC).save(path)
    question = "Which digit is in this picture?\nPick one from the following list:\n\n{labels}"
    return Task(name="digits", source={"folder": str(folder)}, labels=DIGITS, prompt={"user": question})


def answers(params: Params, task: Task, rows: PrepareParams, adapter: str | None, work: Path) -> Answers:
    """The answers to the splits of a task and to blank pictures, which are written to `work` unless they are there."""
    if not (work / "blank.parquet").exists():
        work.mkdir(parents=True, exist_ok=True)
        preparation.prepare(task, rows, params.seed, work, lambda event: None)
        sampled = prior.sample(rows.train, params.structured_eval.prior_samples, params.seed)
        prior.write_blank(work / "blank.parquet", str(work / "train.parquet"), sampled, task.labels[0], params.seed)
    kept = work / ("fine-tuned.npz" if adapter else "base.npz")
    if not kept.exists():
        np.savez(kept, *_of_splits(params, task, adapter, work))
    return Answers(*np.load(kept).values())


def _of_splits(params: Params, task: Task, adapter: str | None, work: Path) -> Iterator[np.ndarray]:
    import pandas as pd

    for split in ("train", "validation", "test", "blank"):
        with tempfile.TemporaryDirectory() as folder:
            batch, data = params.evaluation.batch_size, str(work / f"{split}.parquet")
            job = Evaluation(task, params.model, params.image, batch, data, engine="posterior", adapter=adapter)
            job.run(Path(folder), lambda event: None)
            table = pd.read_parquet(Path(folder, "structured.parquet"))
        yield np.stack(table["probabilities"])
        if split != "blank":
            yield np.array([task.labels.index(label) for label in table["label"]])


def accuracy(probabilities: np.ndarray, truth: np.ndarray, shares: np.ndarray) -> float:
    """The accuracy if the labels had these shares."""
    right = probabilities.argmax(1) == truth
    weights = (shares / np.maximum(np.bincount(truth, minlength=len(shares)), 1))[truth]
    return float(weights @ right / weights.sum())


def zipf(labels: int, rng: np.random.Generator) -> np.ndarray:
    shares = 1 / np.arange(1, labels + 1)
    return rng.permutation(shares / shares.sum())


def rows_of(found: Answers) -> Iterator[dict]:
    """A row for each setting; see the module's docstring."""
    equal = np.bincount(found.test_truth, minlength=found.labels) / len(found.test)
    for of_train, of_test in (("equal", "equal"), ("zipf", "zipf"), ("equal", "zipf"), ("zipf", "equal")):
        for method, strength, samples in _settings(of_train, of_test, len(found.train)):
            measured, gains = [], []
            for draw in range(DRAWS):
                rng = np.random.default_rng(draw)  # the same frequencies for every setting
                skewed = zipf(found.labels, rng)
                shares = skewed if of_test == "zipf" else equal
                drawn = _drawn(found, samples, skewed if of_train == "zipf" else None, rng)
                corrected = _corrected(found, method, strength, drawn)
                measured.append(accuracy(corrected, found.test_truth, shares))
                gains.append(measured[-1] - accuracy(found.test, found.test_truth, shares))
            yield {
                "train": of_train, "test": of_test, "prior": method, "strength": strength, "samples": samples,
                "accuracy": round(float(np.mean(measured)), 4),
                "worst": round(min(gains), 4), "best": round(max(gains), 4),
            }  # fmt: skip


def _settings(of_train: str, of_test: str, train: int) -> Iterator[tuple[str, float | None, int | None]]:
    yield "none", None, None
    for strength in STRENGTHS:
        for samples in SAMPLES if of_train == of_test == "equal" else (256,):
            yield "batch", strength, min(samples, train)
    if of_train == "equal":
        yield "blank", 1.0, None
        if of_test == "equal":
            yield "bias", 1.0, 256


def _drawn(found: Answers, samples: int | None, shares: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """Posteriors of training pictures: without replacement as they are, with replacement if labels have `shares`."""
    if shares is None or samples is None:
        return found.train[rng.permutation(len(found.train))[: samples or 1]]
    weights = (shares / np.maximum(np.bincount(found.train_truth, minlength=len(shares)), 1))[found.train_truth]
    return found.train[rng.choice(len(found.train), samples, p=weights / weights.sum())]


def _corrected(found: Answers, method: str, strength: float | None, drawn: np.ndarray) -> np.ndarray:
    if method == "none":
        return found.test
    source = found.blank if method == "blank" else drawn
    entry = prior.estimate("blank" if method == "blank" else "batch", source) | {"strength": strength}
    offsets = prior.offsets(entry)
    corrected = prior.apply(found.test, offsets)
    if method != "bias":
        return corrected
    validation, truth = found.validation[:LABELLED], found.validation_truth[:LABELLED]
    return calibration.apply(corrected, calibration.fit("bias", prior.apply(validation, offsets), truth.tolist()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, metavar="FOLDER", help="for pictures and posteriors")
    parser.add_argument("--adapter", help="of car_badges; without it, only the base model is asked")
    arguments = parser.parse_args()
    params, work = load_params(), arguments.work
    of_badges = PrepareParams(train=1600, validation=160, test=600)
    of_digits = PrepareParams(train=1000, validation=160, test=600)
    tasks = {f"car_badges, severity {severity}": (badges(params, severity), of_badges) for severity in (0.25, 0.5)}
    tasks["digits"] = digits(work / "scanned"), of_digits
    results = []
    for number, (name, (task, rows)) in enumerate(tasks.items()):
        tuned = {"fine-tuned": arguments.adapter} if arguments.adapter and task.source.badges else {}
        for model, adapter in ({"base": None} | tuned).items():
            for row in rows_of(answers(params, task, rows, adapter, work / str(number))):
                results.append({"task": name, "model": model} | row)
                print("  ".join(f"{value!s:>14}" for value in results[-1].values()), flush=True)
    Path("benchmarks/prior.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
