"""Labels that the model has never written: tiny on scikit-learn's scanned digits, `python -m benchmarks.new_labels`.

The pictures lie in folders zero to nine, as a user's own would. tiny has never written these words, which its tokenizer
spells in two to five tokens each. Each row trains on the same pictures and is scored on the same 200 test pictures:
structured, the most probable label. The rows go from the recipe before there was a loss on labels to params.yaml's, one
change at a time; the last row is a linear probe on the frozen vision tower's features, which needs no fine-tuning.

A row and seed that is already in --output is not trained again: after an interruption, run the same command.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import platformdirs
import torch
from PIL import Image
from sklearn.datasets import load_digits

from vlm.config.events import Event
from vlm.config.params import Params, PrepareParams, load_params
from vlm.config.task import Prompt, Source, Task
from vlm.evaluation import Evaluation
from vlm.evaluation.intervals import wilson
from vlm.probing import FeatureExtraction, baselines
from vlm.sources import preparation
from vlm.training.job import FineTuning

LABELS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIDE = 128  # pixels of an enlarged digit; the scans have 8
SEED_OF_DATA = 23
TEST, VALIDATION = 200, {400: 160, 1574: 23}  # by training pictures; there are 1,797 in all
SEEDS = 3

BEFORE = {"loss": "tokens", "learning_rate": 0.006, "epochs": 2, "lora": {"modules": "language+projector"}}
# What differs from params.yaml, by name and the number of training pictures
ROWS: dict[str, tuple[int, dict[str, Any]]] = {
    "loss on the answer's tokens, 2 epochs (the recipe before)": (400, BEFORE),
    "... 8 epochs": (400, BEFORE | {"epochs": 8}),
    "... and a learning rate of 0.002": (400, BEFORE | {"epochs": 8, "learning_rate": 0.002}),
    "... and loss on the labels": (400, BEFORE | {"epochs": 8, "learning_rate": 0.002, "loss": "labels"}),
    "... or on both": (400, BEFORE | {"epochs": 8, "learning_rate": 0.002, "loss": "both"}),
    "... and LoRA in the vision tower, too": (400, {"epochs": 8}),
    "... and 16 epochs: params.yaml": (400, {}),
    "params.yaml, 1,574 training pictures": (1574, {}),
}
SEVERAL_SEEDS = ("... and 16 epochs: params.yaml", "params.yaml, 1,574 training pictures")
PROBE = "linear probe on frozen features, {:,} training pictures"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=Path("benchmarks/new_labels.json"))
    cache = platformdirs.user_cache_path("vlm-pipeline") / "benchmarks" / "new_labels"
    parser.add_argument("--work", type=Path, default=cache)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    params, done = load_params(), json.loads(options.output.read_text()) if options.output.exists() else []
    params = params.model_copy(update={"task": digits(options.work)})
    jobs = [(PROBE.format(train), train, None, 0) for train in VALIDATION]
    jobs += [
        (name, train, changes, seed)
        for seed in range(SEEDS)
        for name, (train, changes) in ROWS.items()
        if seed == 0 or name in SEVERAL_SEEDS
    ]
    for name, train, changes, seed in jobs:
        if any((row["row"], row["seed"]) == (name, seed) for row in done):
            continue
        directory = options.work / "run"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        data = splits(params.task, train, options.work)
        right = probed(params, data, directory) if changes is None else tuned(params, changes, seed, data, directory)
        done.append({"row": name, "seed": seed, "train": train, "test": TEST, "right": right})
        options.output.write_text(json.dumps(done, indent=2) + "\n", encoding="utf-8")
        print(f"{name}, seed {seed}: {shown(right)}", flush=True)
    print("\n" + table(done))


def digits(work: Path) -> Task:
    """Writes the pictures into a folder for each label, once; returns their task."""
    folder, scans = work / "digits", load_digits()
    if not folder.exists():
        for number, (pixels, digit) in enumerate(zip(scans.images, scans.target, strict=True)):
            path = folder / LABELS[digit] / f"{number:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray((pixels * 255 / 16).astype("uint8")).convert("RGB")
            picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path)
    question = "Which digit is in this picture?\nPick one from the following list:\n\n{labels}"
    return Task(name="digits", source=Source(folder=str(folder)), labels=LABELS, prompt=Prompt(user=question))


def splits(task: Task, train: int, work: Path) -> dict[str, str]:
    """The splits' files by name; writes them if they do not exist."""
    directory = work / f"splits-{train}"
    if not (directory / "test.parquet").exists():
        directory.mkdir()
        wanted = PrepareParams(train=train, validation=VALIDATION[train], test=TEST)
        preparation.prepare(task, wanted, SEED_OF_DATA, directory, quiet)
    return {split: str(directory / f"{split}.parquet") for split in preparation.SPLITS}


def tuned(params: Params, changes: dict[str, Any], seed: int, data: dict[str, str], directory: Path) -> int:
    """The number of test pictures that a fine-tuned model answers right."""
    knobs = params.finetune
    lora = knobs.lora.model_copy(update=changes.get("lora", {}))
    job = FineTuning(
        task=params.task,
        model=params.model,
        image=params.image,
        finetune=knobs.model_copy(update=changes | {"lora": lora}),
        seed=seed,
        train=data["train"],
        validation=data["validation"],
    )
    job.run(directory, quiet)
    answers = directory / "answers"
    answers.mkdir()
    Evaluation(
        task=params.task,
        model=params.model,
        image=params.image,
        batch_size=params.evaluation.batch_size,
        data=data["test"],
        engine="posterior",
        adapter=str(directory / "adapter"),
    ).run(answers, quiet)
    return count_right(answers / "structured.parquet")


def probed(params: Params, data: dict[str, str], directory: Path) -> int:
    """The number of test pictures that a linear probe answers right."""
    FeatureExtraction(params.task, params.model, params.image, **data).run(directory, quiet)
    baselines.write(params.task, data, directory, quiet)
    return count_right(directory / "probe_linear.parquet")


def count_right(path: Path) -> int:
    answers = pd.read_parquet(path)
    return int((answers["label"] == answers["predicted"]).sum())


def shown(right: int) -> str:
    low, high = wilson(right, TEST)
    return f"{100 * right / TEST:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def table(done: list[dict]) -> str:
    lines = ["| row | right of 200, by seed (Wilson 95 %) |", "| --- | --- |"]
    for name in (*ROWS, *map(PROBE.format, VALIDATION)):
        lines.append(f"| {name} | {', '.join(shown(row['right']) for row in done if row['row'] == name)} |")
    return "\n".join(lines)


def quiet(event: Event) -> None:
    """Nobody watches a benchmark's progress bars."""


if __name__ == "__main__":
    main()
