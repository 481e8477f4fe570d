"""What makes fine-tuning better: the reference's recipe compared with ours, `python -m benchmarks.recipe`.

Every row trains on the same car_badges for the same number of samples, with three seeds, and is scored on the same test
photos: structured (the most probable of the task's JSON answers), the same with the label prior corrected (method
batch, estimated from training photos without their labels), raw strict (free text that is a label or the answer JSON)
and raw JSON (free text that is exactly the answer JSON). Rows that are trained on bare labels are also scored on bare
labels, structured, which shows what they have learned apart from the form.

Renders its own photos (seed 23) into --work, at the task's severity or at --severity. A row and seed that is already in
--output is not trained again: after an interruption, run the same command; to start over, delete the file. Several
processes may run at once, each with its own --only. Writes the JSON file and a page next to it (.md) with all
severities in the file.
"""

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import platformdirs
import torch
from peft import PeftModel

from benchmarks import recipe_page, reference
from benchmarks.recipe_rows import VARIANTS, Variant
from models import prompt_tiny
from vlm.config.events import Event
from vlm.config.params import Params, PrepareParams, load_params
from vlm.config.task import Task
from vlm.evaluation import Evaluation
from vlm.models import loading
from vlm.sources import preparation
from vlm.training import lora
from vlm.training.job import FineTuning

SEED_OF_DATA = 23
VALIDATION = 160


class LossOnEverything(FineTuning):
    """Our job with every token supervised except padding and the first one, which nothing predicts."""

    def trainer(self, *arguments, **named):
        made = super().trainer(*arguments, **named)
        collate = made.data_collator

        def everything(rows: list[dict]) -> dict:
            batch = collate(rows)
            batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
            batch["labels"][:, 0] = -100
            return batch

        made.data_collator = everything
        # The loss on validation is divided by the supervised tokens of an average sample.
        batch = next(iter(made.get_eval_dataloader()))
        made.answer_tokens = float((batch["labels"] != -100).sum()) / len(batch["labels"])
        return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=800, help="training photos")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--test", type=int, default=600, help="test photos")
    parser.add_argument("--severity", type=float, help="how hard the photos are, 0 to 1; default: the task's")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    names = [variant.name for variant in VARIANTS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="ROW", help="rows to train now")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/recipe.json"))
    parser.add_argument(
        "--work", type=Path, default=platformdirs.user_cache_path("vlm-pipeline") / "benchmarks" / "recipe"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    params = load_params()
    source = params.task.source.badges
    severity = source.severity if options.severity is None else options.severity
    source = params.task.source.model_copy(update={"badges": source.model_copy(update={"severity": severity})})
    changes = {
        "task": params.task.model_copy(update={"source": source}),
        "finetune": params.finetune.model_copy(update={"epochs": options.epochs}),
    }
    params = params.model_copy(update=changes)
    # The number of threads changes how sums are rounded.
    size = {"rows": options.rows, "epochs": options.epochs, "test": options.test, "threads": options.threads}
    work = options.work / "-".join(str(number) for number in (*size.values(), severity))
    data = render(params.task, options.rows, options.test, work / "data")
    for seed in range(options.seeds):
        for variant in VARIANTS:
            if variant.name not in options.only or (variant.recipe == "none" and seed):
                continue
            wanted = {"variant": variant.name, "seed": seed, "severity": severity}
            if any(row | wanted == row for row in finished(options.output, size)):
                continue
            began = time.perf_counter()
            directory = work / f"{VARIANTS.index(variant)}-{seed}"
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
            start = prompt_trained(params, options.work / "prompt-trained") if variant.prompted else params
            adapter, trained = train(variant, start, data, seed, directory)
            scores = score(variant, start, data, adapter, directory)
            done = finished(options.output, size)  # read again, because another process may have added rows
            done.append(wanted | size | trained | scores)
            done.sort(key=lambda row: (row["severity"], names.index(row["variant"]), row["seed"]))
            write(options.output, json.dumps(done, indent=2) + "\n")
            write(options.output.with_suffix(".md"), page(done, params.task))
            shutil.rmtree(directory)
            print(
                f"{variant.name}, seed {seed}: structured {scores['structured']:.3f}, "
                f"label prior corrected {scores['structured_prior']:.3f}, "
                f"raw strict {scores['raw_strict']:.3f}, {time.perf_counter() - began:.0f} s",
                flush=True,
            )
    done = finished(options.output, size)
    write(options.output.with_suffix(".md"), page(done, params.task))
    print(page(done, params.task))


def page(done: list[dict], task: Task) -> str:
    return recipe_page.page(done, len(task.labels), VALIDATION)


def prompt_trained(params: Params, folder: Path) -> Params:
    """The parameters with the model of models/prompt_tiny.py, which is trained if it is not in `folder`."""
    if not (folder / "model.safetensors").exists():
        unfinished = folder.with_name(f"{folder.name}.part")
        prompt_tiny.train(unfinished, prompt_tiny.Settings())
        unfinished.replace(folder)
    return params.model_copy(update={"model": params.model.model_copy(update={"id": str(folder), "revision": None})})


def finished(output: Path, size: dict[str, int]) -> list[dict]:
    """The results of an earlier run with these settings."""
    rows = json.loads(output.read_text()) if output.exists() else []
    return [row for row in rows if {name: row[name] for name in size} == size]


def render(task: Task, rows: int, test: int, directory: Path) -> dict[str, str]:
    """The splits' files by name; renders them if they do not exist."""
    if not (directory / "test.parquet").exists():
        directory.mkdir(parents=True, exist_ok=True)
        wanted = PrepareParams(train=rows, validation=VALIDATION, test=test)
        preparation.prepare(task, wanted, SEED_OF_DATA, directory, quiet)
    return {split: str(directory / f"{split}.parquet") for split in preparation.SPLITS}


def train(
    variant: Variant, params: Params, data: dict[str, str], seed: int, directory: Path
) -> tuple[str | None, dict[str, int]]:
    """Trains; returns the adapter's folder and the number of its parameters in each part of the model."""
    task = bare_task(params.task) if variant.bare else params.task
    if variant.recipe == "none":
        return None, dict.fromkeys(lora.PARTS, 0)
    if variant.recipe == "ours":
        return str(directory / "adapter"), ours(variant, params, task, data, seed, directory)
    loaded, processor = loading.load(params.model, params.image)
    made = reference.trainer(
        loaded,
        processor,
        task,
        params.finetune,
        data["train"],
        directory,
        seed,
        variant.learning_rate,
        checkpointing=False,  # the gradients are the same; benchmarks/finetuning.py measures the time
    )
    made.train()
    made.model.save_pretrained(directory / "adapter")
    return str(directory / "adapter"), trainable(made.model)


def ours(
    variant: Variant, params: Params, task: Task, data: dict[str, str], seed: int, directory: Path
) -> dict[str, int]:
    finetune = params.finetune.model_copy(update={"learning_rate": variant.learning_rate, **variant.finetune})
    if variant.targets:
        knobs = finetune.lora.model_copy(update={"modules": variant.targets})
        finetune = finetune.model_copy(update={"lora": knobs})
    kind = LossOnEverything if variant.everything else FineTuning
    job = kind(
        task=task,
        model=params.model,
        image=params.image,
        finetune=finetune,
        seed=seed,
        train=data["train"],
        validation=data["validation"],
    )
    job.run(directory, quiet)
    sizes = dict.fromkeys(lora.PARTS, 0)
    for row in pd.read_csv(directory / "modules.csv").itertuples():
        sizes[row.part] += row.trainable_parameters
    return sizes


def trainable(wrapped: PeftModel) -> dict[str, int]:
    sizes = dict.fromkeys(lora.PARTS, 0)
    for name, parameter in wrapped.named_parameters():
        sizes[lora.part(name)] += parameter.numel() if parameter.requires_grad else 0
    return sizes


def score(
    variant: Variant, params: Params, data: dict[str, str], adapter: str | None, directory: Path
) -> dict[str, float]:
    """Accuracies of an adapter: structured on validation and test, with the label prior corrected too, raw on test."""

    def predictions(kind: str, split: str, task: Task, **changes: Any) -> pd.DataFrame:
        folder = directory / f"{kind}-{split}-{task.answer_form}"
        folder.mkdir()
        Evaluation(
            task=task,
            model=params.model,
            image=params.image,
            batch_size=params.evaluation.batch_size,
            data=data[split],
            raw_tokens=params.evaluation.max_new_tokens if kind == "raw" else None,
            engine="posterior" if kind == "structured" else None,
            adapter=adapter,
            **changes,
        ).run(folder, quiet)
        return pd.read_parquet(folder / f"{kind}.parquet")

    raw = predictions("raw", "test", params.task)
    as_json = raw["text"].str.strip() == [params.task.answer(label) for label in raw["label"]]
    samples = params.structured_eval.prior_samples
    prior = {"prior": "batch", "prior_samples": samples, "train": data["train"], "seed": SEED_OF_DATA}
    structured = predictions("structured", "test", params.task, **prior)
    plain = np.stack(structured["plain_probabilities"].to_list()).argmax(1)
    scores = {
        "structured": float((structured["label"] == np.array(params.task.labels)[plain]).mean()),
        "structured_prior": accuracy(structured),
        "raw_strict": accuracy(raw),
        "raw_json": float(as_json.mean()),
        "validation": accuracy(predictions("structured", "validation", params.task)),
    }
    if variant.bare:
        scores["structured_bare"] = accuracy(predictions("structured", "test", bare_task(params.task)))
    return scores


def accuracy(predictions: pd.DataFrame) -> float:
    return float((predictions["label"] == predictions["predicted"]).mean())


def bare_task(task: Task) -> Task:
    return task.model_copy(update={"answer_form": "label"})


def write(path: Path, text: str) -> None:
    """Replaces a file in one step, so that other processes never read half of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def quiet(event: Event) -> None:
    """Ignores a job's events."""


if __name__ == "__main__":
    main()
