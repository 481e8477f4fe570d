"""What makes fine-tuning better: the reference's recipe compared with ours, `python -m benchmarks.recipe`.

Every row trains the tiny model on the same car_badges for the same number of samples, with three seeds, and is scored
on the same test photos: structured (the most probable of the task's JSON answers), raw strict (free text that is a
label or the answer JSON) and raw JSON (free text that is exactly the answer JSON). Rows that are trained on bare
labels are also scored on bare labels, structured, which shows what they have learned apart from the form.

Renders its own photos (seed 23) into --work. A row and seed that is already in --output is not trained again: after an
interruption, run the same command; to start over, delete the file. Several processes may run at once, each with its own
--only. Writes the JSON file and a table next to it (.md).
"""

import argparse
import dataclasses
import json
import shutil
import time
from pathlib import Path

import pandas as pd
import platformdirs
import torch
from peft import PeftModel

from benchmarks import reference
from vlm.config.events import Event
from vlm.config.params import Params, PrepareParams, load_params
from vlm.config.task import Task
from vlm.evaluation import Evaluation
from vlm.evaluation.intervals import wilson
from vlm.models import loading
from vlm.sources import preparation
from vlm.training import lora
from vlm.training.job import FineTuning

SEED_OF_DATA = 23
VALIDATION = 160


@dataclasses.dataclass(frozen=True)
class Variant:
    """A row of the table: `recipe` is reference, ours or none; the other fields are the changes to it."""

    name: str
    what: str
    recipe: str
    learning_rate: float | None = None  # None: the model file's
    bare: bool = False  # trains the bare label
    targets: str | None = None  # LoRA targets of ours; None: params.yaml's
    everything: bool = False  # loss on every token in ours


# The names in reference.TARGETS that the model has, because our own job refuses the others
EXISTING = r"^.*\.(q_proj|v_proj|fc1|fc2)$"
VARIANTS = [
    Variant("untrained", "the model before fine-tuning", "none"),
    Variant(
        "reference, 0.0005",
        "the reference's recipe (benchmarks/reference.py) and learning rate",
        "reference",
        reference.LEARNING_RATE,
        bare=True,
    ),
    Variant("reference, 0.0001", "the same with a smaller learning rate", "reference", 0.0001, bare=True),
    Variant("reference, 0.006", "the same with the model file's learning rate", "reference", 0.006, bare=True),
    Variant("ours", "`FineTuning` with the settings in params.yaml", "ours"),
    Variant(
        "ours, loss on everything", "ours with the loss on prompt and image placeholders, too", "ours", everything=True
    ),
    Variant(
        "ours, loss on everything, 0.0005",
        "the same with the learning rate of reference, 0.0005",
        "ours",
        reference.LEARNING_RATE,
        everything=True,
    ),
    Variant(
        "ours, reference's targets", "ours with LoRA on the reference's targets that exist", "ours", targets=EXISTING
    ),
    Variant("ours, bare answers", "ours, trained on bare labels and scored on JSON", "ours", bare=True),
    Variant(
        "ours, reference's targets, bare answers",
        "both: the reference's recipe with the loss on the answer and the model file's learning rate",
        "ours",
        bare=True,
        targets=EXISTING,
    ),
]


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
        return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=800, help="training photos")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--test", type=int, default=600, help="test photos")
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
    params = params.model_copy(update={"finetune": params.finetune.model_copy(update={"epochs": options.epochs})})
    # The number of threads changes how sums are rounded.
    size = {"rows": options.rows, "epochs": options.epochs, "test": options.test, "threads": options.threads}
    work = options.work / "-".join(str(number) for number in size.values())
    data = render(params.task, options.rows, options.test, work / "data")
    for seed in range(options.seeds):
        for variant in VARIANTS:
            if variant.name not in options.only or (variant.recipe == "none" and seed):
                continue
            if any((row["variant"], row["seed"]) == (variant.name, seed) for row in finished(options.output, size)):
                continue
            began = time.perf_counter()
            directory = work / f"{VARIANTS.index(variant)}-{seed}"
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
            adapter, trained = train(variant, params, data, seed, directory)
            scores = score(variant, params, data, adapter, directory)
            done = finished(options.output, size)  # read again, because another process may have added rows
            done.append({"variant": variant.name, "seed": seed, **size, **trained, **scores})
            done.sort(key=lambda row: (names.index(row["variant"]), row["seed"]))
            write(options.output, json.dumps(done, indent=2) + "\n")
            write(options.output.with_suffix(".md"), table(done, len(params.task.labels)))
            shutil.rmtree(directory)
            print(
                f"{variant.name}, seed {seed}: structured {scores['structured']:.3f}, "
                f"raw strict {scores['raw_strict']:.3f}, {time.perf_counter() - began:.0f} s",
                flush=True,
            )
    page = table(finished(options.output, size), len(params.task.labels))
    write(options.output.with_suffix(".md"), page)
    print(page)


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
    finetune = params.finetune.model_copy(update={"learning_rate": variant.learning_rate})
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
    """Accuracies of an adapter: structured on validation and test, raw on test."""

    def predictions(kind: str, split: str, task: Task) -> pd.DataFrame:
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
        ).run(folder, quiet)
        return pd.read_parquet(folder / f"{kind}.parquet")

    raw = predictions("raw", "test", params.task)
    as_json = raw["text"].str.strip() == [params.task.answer(label) for label in raw["label"]]
    scores = {
        "structured": accuracy(predictions("structured", "test", params.task)),
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


def table(done: list[dict], labels: int) -> str:
    """The results as a page of Markdown."""
    size = done[0]
    seen = size["rows"] * size["epochs"]
    names = [v.name for v in VARIANTS if any(row["variant"] == v.name for row in done)]
    rows = {name: [row for row in done if row["variant"] == name] for name in names}
    seeds = max(len(found) for found in rows.values())
    lines = [
        "# What makes fine-tuning better",
        "",
        f"`python -m benchmarks.recipe --rows {size['rows']} --epochs {size['epochs']} --test {size['test']} "
        f"--seeds {seeds} --threads {size['threads']}` wrote this page and recipe.json, which has all of its numbers.",
        "",
        f"The tiny model on car_badges ({labels} makers): {size['rows']} training photos x {size['epochs']} epochs = "
        f"{seen:,} samples seen in each row, LoRA rank, alpha and dropout of params.yaml, {size['test']} test photos. "
        "In parentheses: the 95 % Wilson interval for one seed. The rows are:",
        "",
        *[f"- **{v.name}**: {v.what}" for v in VARIANTS if v.name in names],
        "",
        f"The reference's list of LoRA targets is {', '.join(f'`{name}`' for name in reference.TARGETS)}; this model "
        "has the first four. The reference is trained on bare labels and scored on JSON, as in the tutorial. It runs "
        "here without gradient checkpointing, which changes its time but not its gradients. Its result is its last "
        f"weights; ours is the best checkpoint on {VALIDATION} validation photos. Use the validation column to choose "
        "a learning rate.",
        "",
        "Note that tiny was pretrained on answers only: every token of the prompt is new to it, and a loss on all "
        "tokens is mostly about memorising the prompt. A model that was pretrained on running text has less to lose.",
    ]
    for metric, title in (
        ("structured", "Structured: the most probable answer"),
        ("raw_strict", "Raw, strict: free text"),
    ):
        lines += ["", f"## {title}", "", f"| | {' | '.join(f'seed {s}' for s in range(seeds))} | mean |"]
        lines.append("| --- |" + " --- |" * (seeds + 1))
        for name, found in rows.items():
            cells = [with_interval(row[metric], size["test"]) for row in found]
            cells += [""] * (seeds - len(cells))
            lines.append(f"| {name} | {' | '.join(cells)} | **{mean(found, metric)}** |")
    lines += [
        *["", "## Means over seeds, %", ""],
        "| | structured | structured, bare labels | raw strict | raw JSON | validation, structured | "
        "LoRA parameters: language | projector | vision |",
        "| --- |" + " --- |" * 8,
    ]
    for name, found in rows.items():
        bare = mean(found, "structured_bare") if "structured_bare" in found[0] else ""
        cells = [mean(found, "structured"), bare, *(mean(found, m) for m in ("raw_strict", "raw_json", "validation"))]
        cells += [f"{found[0][part]:,}" for part in lora.PARTS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def with_interval(fraction: float, n: int) -> str:
    low, high = wilson(round(fraction * n), n)
    return f"{fraction:.1%} ({low * 100:.1f} to {high * 100:.1f})".replace("%", " %")


def mean(found: list[dict], metric: str) -> str:
    return f"{sum(row[metric] for row in found) / len(found) * 100:.1f}"


def write(path: Path, text: str) -> None:
    """Replaces a file in one step, so that other processes never read half of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def quiet(event: Event) -> None:
    """Ignores a job's events."""


if __name__ == "__main__":
    main()
