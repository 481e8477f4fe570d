"""Compares ways to fine-tune: `python -m benchmarks.finetuning`.

Measures samples per second and peak memory over three epochs of a small set of badges. The cases:

- reference: the recipe of the tutorial that this pipeline grew out of (benchmarks/reference.py), with its LoRA targets:
  one sample at a time, 16 per step, gradient checkpointing, loss on every token.
- sft: TRL's SFTTrainer with its own collator, on prompt and completion, loss on the completion. Batch, LoRA modules,
  optimizer, dtype and schedule are ours; no gradient checkpointing.
- sft_fused: the same, with its fused output layer made to skip the prompt's positions, as it does on a GPU.
- ours: `vlm.training.FineTuning` with the settings in params.yaml.

Time runs from the loaded model to the end of the last optimizer step, without validation passes or checkpoints in
between. Each case has its own process, which first trains tiny on one sample to warm up. Peak memory is the largest
resident set after loading the model (on macOS, including loading).

Models: one of LFM2-VL-450M's dimensions with random weights (few steps; 64 image tokens), tiny with its own vocabulary,
and tiny with one of 65,536 tokens. All cases but the reference have LoRA in the language model and the projector, as
real models by default. Tiny is measured again with LoRA in its vision tower, too, which is its default. Tiny runs three
rounds; the median speed and the largest peak are reported. Prints a table and writes benchmarks/finetuning.json. About
25 minutes on two idle cores. --only "450M dimensions": measures that model again and replaces its rows, in ten minutes.
--quick: only tiny, one round, as a trial; writes nothing.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

RESULTS = Path("benchmarks/finetuning.json")
EPOCHS = 3
CASES = ("reference", "sft", "sft_fused", "ours")
MODULES = "language+projector"
ALL_MODULES = "language+projector+vision"
# Model, LoRA modules, training rows, batch size, rounds
SIZES = (
    ("450M dimensions", MODULES, 6, 3, 1),
    ("tiny", MODULES, 96, 16, 3),
    ("tiny", ALL_MODULES, 96, 16, 3),
    ("tiny, 65,536 tokens", MODULES, 32, 16, 3),
)
QUICK = (("tiny", MODULES, 32, 16, 1),)


class Finished(Exception):
    """Raised after the last optimizer step; what a trainer does after it is not measured."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=list(dict.fromkeys(model for model, *_ in SIZES)))
    # For child processes. This process stays small, because a child's peak memory starts at its parent's.
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.prepare:
        prepare(options.prepare, QUICK if options.quick else SIZES)
    elif options.measure:
        case, model, modules, rows, batch_size, folder = options.measure
        print(json.dumps(measure(case, model, modules, int(rows), int(batch_size), Path(folder))))
    else:
        compare(options.quick, options.only)


def compare(quick: bool, only: str | None) -> None:
    command = [sys.executable, "-m", "benchmarks.finetuning"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*command, "--prepare", folder, *(["--quick"] if quick else [])], check=True)
        rows = [] if only is None else json.loads(RESULTS.read_text())  # in the order of SIZES and CASES
        for number, (model, modules, count, batch_size, rounds) in enumerate(QUICK if quick else SIZES):
            if only not in (None, model):
                continue
            runs: dict[str, list[dict]] = {case: [] for case in CASES}
            for _ in range(rounds):  # all cases in each, so that a slow phase of the host affects all of them
                for case in CASES:
                    arguments = ["--measure", case, model, modules, str(count), str(batch_size), folder]
                    done = subprocess.run([*command, *arguments], check=True, stdout=subprocess.PIPE)
                    runs[case].append(json.loads(done.stdout.splitlines()[-1]))
            found = {case: median(of_case) for case, of_case in runs.items()}
            for case, row in found.items():
                speed = row["samples_per_second"]
                ratios = [speed / found[other]["samples_per_second"] for other in ("reference", "sft_fused")]
                print(
                    f"{row['model']:16} {row['vocabulary']:6} {modules:26} {case:10} {speed:8.3g} samples/s "
                    f"{ratios[0]:6.2f} x reference {ratios[1]:6.2f} x sft_fused {row['peak_gb']:6.2f} GB",
                    flush=True,
                )
            rows[number * len(CASES) : (number + 1) * len(CASES)] = found.values()
    if not quick:
        RESULTS.write_text(json.dumps(rows, indent=2) + "\n")


def median(runs: list[dict]) -> dict:
    """A case's row for all rounds: the median speed and the largest peak."""
    speed = statistics.median(run["samples_per_second"] for run in runs)
    return runs[0] | {"samples_per_second": speed, "peak_gb": max(run["peak_gb"] for run in runs)}


def prepare(folder: Path, sizes: Sequence[tuple[str, str, int, int, int]]) -> None:
    """Writes the models and the data to `folder`, in a separate process, so that no case's memory includes it."""
    from benchmarks.models import large_450m, with_vocabulary
    from vlm.config.params import PrepareParams, load_params
    from vlm.data import dataset
    from vlm.models import loading
    from vlm.sources import preparation

    params = load_params()
    counts = {1, *(rows for _, _, rows, _, _ in sizes)}
    preparation.prepare(
        params.task, PrepareParams(train=max(counts), validation=1, test=1), 23, folder, lambda event: None
    )
    reader = dataset.Reader(folder / "train.parquet")
    for count in counts:
        dataset.write(folder / f"{count}.parquet", reader.rows(range(count)))
    tiny, processor = loading.load(params.model, params.image)
    models = {"tiny": (tiny, processor)}
    if any(model != "tiny" for model, *_ in sizes):
        wide, wide_processor = with_vocabulary(tiny, processor, 65_536)
        models["tiny, 65,536 tokens"] = wide, wide_processor
        models["450M dimensions"] = large_450m(wide_processor)
    for name, (made, with_processor) in models.items():
        made.save_pretrained(folder / name)
        with_processor.save_pretrained(folder / name)


def measure(case: str, name: str, modules: str, rows: int, batch_size: int, folder: Path) -> dict:
    """One case's row: a warm-up, then the measured run."""
    run(case, "tiny", modules, folder, 1, 1)
    vocabulary, seconds, peak = run(case, name, modules, folder, rows, batch_size)
    return {
        "case": case,
        "model": name.partition(",")[0],
        "vocabulary": vocabulary,
        "modules": None if case == "reference" else modules,
        "samples_per_second": float(f"{rows * EPOCHS / seconds:.3g}"),
        "peak_gb": round(peak, 3),
    }


def run(case: str, name: str, modules: str, folder: Path, rows: int, batch_size: int) -> tuple[int, float, float]:
    """Trains; returns the vocabulary size, the seconds, and the peak memory in GB after loading the model."""
    import contextlib
    import io
    from unittest.mock import patch

    from transformers import TrainerCallback

    from vlm.config.events import Event, Progress
    from vlm.models import loading

    job = job_of(name, modules, folder, rows, batch_size)
    ended: list[tuple[float, float]] = []

    def at_the_end(step: int, steps: int) -> None:
        if step >= steps:
            ended.append((time.perf_counter(), peak_gb()))
            raise Finished

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            at_the_end(state.global_step, state.max_steps)

    def emit(event: Event) -> None:
        if isinstance(event, Progress) and event.unit == "step":
            at_the_end(event.done, event.total)

    with contextlib.redirect_stderr(io.StringIO()):  # a warning that these models are not pinned
        loaded, processor = loading.load(job.model, job.image)
    vocabulary = loaded.get_input_embeddings().num_embeddings
    with tempfile.TemporaryDirectory() as scratch:
        forget_peak()
        began = time.perf_counter()
        with contextlib.suppress(Finished):
            if case == "ours":
                with patch.object(loading, "load", return_value=(loaded, processor)):  # loading is not measured
                    job.run(Path(scratch), emit)
            elif case == "reference":
                reference_trainer(job, loaded, processor, Path(scratch), Watch()).train()
            else:
                sft_trainer(job, loaded, processor, Path(scratch), Watch(), fused=case == "sft_fused").train()
    (end,) = ended
    return vocabulary, end[0] - began, end[1]


def job_of(name: str, modules: str, folder: Path, rows: int, batch_size: int):
    """A fine-tuning job with the settings in params.yaml, but with `modules`, on rows that `prepare` wrote."""
    from vlm.config.params import load_params
    from vlm.training.job import FineTuning

    params = load_params()
    changes = {
        **{"epochs": EPOCHS, "batch_size": batch_size, "micro_batch": None, "eval_steps": 10_000, "eval_samples": 1},
        "lora": params.finetune.lora.model_copy(update={"modules": modules}),
    }
    return FineTuning(
        task=params.task,
        model=params.model.model_copy(update={"id": str(folder / name), "revision": None}),
        image=params.image,
        finetune=params.finetune.model_copy(update=changes),
        seed=23,
        train=str(folder / f"{rows}.parquet"),
        validation=str(folder / "validation.parquet"),
    )


def reference_trainer(job, loaded, processor, directory: Path, callback):
    """The reference recipe's trainer with the job's rows and settings, but its own learning rate and answers."""
    from benchmarks import reference

    return reference.trainer(
        loaded,
        processor,
        job.task.model_copy(update={"answer_form": "label"}),
        job.finetune,
        job.train,
        directory,
        job.seed,
        reference.LEARNING_RATE,
        callbacks=(callback,),
    )


def sft_trainer(job, loaded, processor, directory: Path, callback, fused: bool):
    """TRL's own trainer with the job's rows, LoRA modules and settings."""
    import trl.trainer.utils
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    if fused:
        trl.trainer.utils._use_triton = lambda device: True
    messages = job.task.conversation()
    for message in messages:
        if not isinstance(message["content"], str):  # TRL puts the picture before the text itself
            (message["content"],) = [part["text"] for part in message["content"] if part["type"] == "text"]
    rows = Dataset.from_parquet(job.train, cache_dir=str(directory / "datasets"))
    answers = [[{"role": "assistant", "content": job.task.answer(label)}] for label in rows["label"]]
    rows = rows.add_column("prompt", [messages] * len(rows)).add_column("completion", answers)
    knobs, params = job.finetune.lora, job.finetune
    trainer = SFTTrainer(
        model=loaded,
        args=SFTConfig(
            output_dir=str(directory),
            num_train_epochs=params.epochs,
            per_device_train_batch_size=params.batch_size,
            learning_rate=params.learning_rate or job.model.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.05,  # a fraction of all steps
            seed=job.seed,
            bf16=False,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
            max_length=None,
            completion_only_loss=True,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            log_level="error",
        ),
        train_dataset=rows.remove_columns(["id", "label"]),
        processing_class=processor,
        peft_config=LoraConfig(
            r=knobs.r,
            lora_alpha=knobs.alpha,
            lora_dropout=knobs.dropout,
            target_modules=job.pattern(loaded),
            task_type="CAUSAL_LM",
        ),
        callbacks=[callback],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def forget_peak() -> None:
    """Resets the peak memory counter, on Linux."""
    counter = Path("/proc/self/clear_refs")
    if counter.exists():
        counter.write_text("5")


def peak_gb() -> float:
    """This process's largest resident set so far; Linux counts in KiB, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


if __name__ == "__main__":
    main()
