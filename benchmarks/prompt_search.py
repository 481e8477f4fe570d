"""What the prompt search finds with tiny: `python -m benchmarks.prompt_search`.

Searches with three seeds on car_badges, with the label prior corrected and without, and on scikit-learn's scanned
digits (the folders of benchmarks/new_labels.py, with the candidates that a task without a file of its own gets). A row
has what the winner gains over the present prompt on the samples that had no part in the choice, and on test.

Works in a folder of its own (--work), with its own renderings, and writes the JSON file when all is done.
"""

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

import platformdirs
import torch

from benchmarks.new_labels import digits, quiet
from vlm.config.params import Params, PrepareParams, load_params
from vlm.measuring.prompt_search import lines, measure
from vlm.prompting.search import search
from vlm.prompting.table import FOLDER
from vlm.sources import preparation

SEEDS = (1, 2, 3)
SEED_OF_DATA = 23
SIZES = PrepareParams(train=400, validation=160, test=600)
CASES = (("car_badges", "batch"), ("car_badges", "none"), ("digits", "batch"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=Path("benchmarks/prompt_search.json"))
    cache = platformdirs.user_cache_path("vlm-pipeline") / "benchmarks" / "prompt_search"
    parser.add_argument("--work", type=Path, default=cache)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    params, output = load_params(), options.output.absolute()
    tasks = {"car_badges": params.task, "digits": digits(options.work.absolute())}
    root, done = Path.cwd(), []
    for name, task in tasks.items():
        folder = options.work / "repositories" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        shutil.copytree(root / "configs", folder / "configs")
        (folder / "models").symlink_to(root / "models")
        # A searched task's file is a copy of the present one's.
        if not (folder / "configs" / "tasks" / f"{name}.yaml").exists():
            shape = task.model_dump(mode="json", exclude={"name"}, exclude_defaults=True)
            (folder / "configs" / "tasks" / f"{name}.yaml").write_text(json.dumps(shape), encoding="utf-8")
        os.chdir(folder)
        preparation.prepare(task, SIZES, SEED_OF_DATA, Path("data"), quiet)
        for _, prior in (case for case in CASES if case[0] == name):
            for seed in SEEDS:
                done.append({"task": name, "prior": prior, "seed": seed} | searched(params, task, prior, seed))
                print(shown(done[-1]), flush=True)
        os.chdir(root)
    output.write_text(json.dumps(done, indent=2) + "\n", encoding="utf-8")
    print("\n" + table(done))


def searched(params: Params, task: Any, prior: str, seed: int) -> dict[str, Any]:
    structured = params.structured_eval.model_copy(update={"prior": prior})
    changes = {"task": task, "seed": seed, "structured_eval": structured, "compute": "local"}
    print(search(params.model_copy(update=changes)))
    found = measure(Path(FOLDER))
    print("\n".join(lines(found)))
    return found


def shown(row: dict[str, Any]) -> str:
    return f"{row['task']}, prior {row['prior']}, seed {row['seed']}: {cells(row)}"


def cells(row: dict[str, Any]) -> str:
    held, test = row["held_out"], row.get("test")
    before, after = row["chosen_on"]["present_log_loss"], row["chosen_on"]["log_loss"]
    on_test = f"{100 * test['present_accuracy']:.1f} % | {gain(test)}" if test else "the present prompt won | "
    return f"{before:.3f} | {after:.3f} | {gain(held)} | {on_test}"


def gain(compared: dict[str, Any]) -> str:
    middle, low, high = (100 * compared[key] for key in ("gain", "gain_low", "gain_high"))
    return f"{middle:+.1f} ({low:+.1f} to {high:+.1f})"


def table(done: list[dict[str, Any]]) -> str:
    lines = [
        "| task | label prior | seed | log loss on validation: present | winner | gain on the other half, points | "
        "test, present prompt | gain on test, points |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [f"| {row['task']} | {row['prior']} | {row['seed']} | {cells(row)} |" for row in done]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
