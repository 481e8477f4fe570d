"""Compares the time of a training step by its loss: `python -m benchmarks.losses`.

Steps of the trainer on batches of 16 badges with tiny, with image features from the cache: forward and backward pass,
without the optimizer, which is the same for all. The losses take turns, step by step, in one process, so that whatever
else runs on the machine slows all of them. Two vocabularies: tiny's own, and one of 65,536 tokens (as LFM2-VL has), of
which the added ones occur in no text. Prints the median of a step's seconds and of its ratio to the step on tokens just
before it, and writes benchmarks/losses.json. The ratio is the result; the committed seconds are from a busy machine.
"""

import dataclasses
import json
import statistics
import tempfile
import time
from pathlib import Path

LOSSES = ("tokens", "labels", "both")
BATCH = 16
WARM_UP, ROUNDS = 2, 30


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        job = job_in(Path(folder))
        for vocabulary in (None, 65_536):
            rows += measured(job, vocabulary, Path(folder, str(vocabulary)))
    for row in rows:
        print(
            f"{row['vocabulary']:6} {row['loss']:6} {row['seconds_per_step']:.4f} s a step, "
            f"{row['ratio_to_tokens']:.3f} x tokens"
        )
    Path("benchmarks/losses.json").write_text(json.dumps(rows, indent=2) + "\n")


def job_in(folder: Path):
    """A fine-tuning job with the settings in params.yaml, on splits that are written to `folder`."""
    from vlm.config.params import PrepareParams, load_params
    from vlm.sources import preparation
    from vlm.training.job import FineTuning

    params = load_params()
    wanted = PrepareParams(train=10 * BATCH, validation=BATCH, test=1)
    preparation.prepare(params.task, wanted, params.seed, folder, lambda event: None)
    return FineTuning(
        task=params.task,
        model=params.model,
        image=params.image,
        finetune=params.finetune.model_copy(update={"batch_size": BATCH, "micro_batch": BATCH}),
        seed=params.seed,
        train=str(folder / "train.parquet"),
        validation=str(folder / "validation.parquet"),
    )


def measured(job, vocabulary: int | None, folder: Path) -> list[dict]:
    """One row for each loss, with a model of `vocabulary` tokens (None: its own)."""
    turns = [steps(job, loss, vocabulary, folder / loss) for loss in LOSSES]
    seconds: dict[str, list[float]] = {loss: [] for loss in LOSSES}
    size = 0
    for number in range(WARM_UP + ROUNDS):
        for loss, turn in zip(LOSSES, turns, strict=True):
            took, size = next(turn)
            if number >= WARM_UP:
                seconds[loss].append(took)
    return [
        {
            "vocabulary": size,
            "loss": loss,
            "seconds_per_step": round(statistics.median(taken), 4),
            "ratio_to_tokens": round(
                statistics.median(one / other for one, other in zip(taken, seconds["tokens"], strict=True)), 3
            ),
        }
        for loss, taken in seconds.items()
    ]


def steps(job, loss: str, vocabulary: int | None, folder: Path):
    """Yields the seconds of a step and the size of the vocabulary, for one step after another, without end."""
    from vlm.training import features

    folder.mkdir(parents=True)
    job = dataclasses.replace(job, finetune=job.finetune.model_copy(update={"loss": loss}))
    model, processor = job.load()
    if vocabulary:
        model.resize_token_embeddings(vocabulary)
    splits, silent = [job.train, job.validation], lambda event: None
    kept = features.precompute(model, processor, job.task, splits, folder / "features", 1.0, silent)
    trainer = job.trainer(model, processor, folder / "checkpoints", silent, kept=kept)
    size = model.get_output_embeddings().weight.shape[0]
    while True:
        loader = iter(trainer.get_train_dataloader())
        for _ in range(len(trainer.get_train_dataloader())):
            batches, counts = trainer.get_batch_samples(loader, 1, trainer.args.device)
            began = time.perf_counter()
            trainer.training_step(trainer.model, batches[0], counts)
            took = time.perf_counter() - began
            trainer.model.zero_grad()
            yield took, size


if __name__ == "__main__":
    main()
