"""A training run's checkpoints: finding the last complete one, and the table of their validation results."""

import csv
import json
import math
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import TrainerState

COLUMNS = tuple("step epoch train_loss eval_loss accuracy low high log_loss learning_rate best".split())


def last_checkpoint(directory: Path) -> Path | None:
    """Returns the latest complete checkpoint, None if there is none."""
    complete = [path for path in directory.glob("checkpoint-*") if _is_complete(path)]
    return max(complete, key=lambda path: int(path.name.removeprefix("checkpoint-")), default=None)


def _is_complete(checkpoint: Path) -> bool:
    """Whether no file is missing or truncated: torch's files are zips, and safetensors files state their length."""
    from safetensors import SafetensorError, safe_open

    try:
        json.loads((checkpoint / "trainer_state.json").read_text())  # the trainer writes it last
        adapter, whole = checkpoint / "adapter_model.safetensors", checkpoint / "model.safetensors"
        with safe_open(whole if whole.exists() else adapter, "pt"):
            pass
    except (OSError, ValueError, SafetensorError):
        return False
    # Each process writes its own file of random state.
    files = [checkpoint / "optimizer.pt", checkpoint / "scheduler.pt", *checkpoint.glob("rng_state*.pth")]
    return len(files) > 2 and all(zipfile.is_zipfile(path) for path in files)


def validation_passes(state: "TrainerState") -> list[dict[str, float]]:
    """Returns the validation passes in the trainer's log: one dict per step, with COLUMNS as keys.

    After a resume the log may contain the last pass twice; it is returned once.
    """
    passes, train_loss, rate = {}, math.nan, math.nan
    for entry in state.log_history:
        if "loss" in entry:
            train_loss, rate = entry["loss"], entry["learning_rate"]
        if "eval_loss" in entry:
            found = {name: entry.get(f"eval_{name}") for name in COLUMNS}
            found |= {"step": entry["step"], "epoch": round(entry["epoch"], 6), "eval_loss": entry["eval_loss"]}
            found |= {"train_loss": train_loss, "learning_rate": rate}
            passes[entry["step"]] = found | {"best": int(entry["step"] == state.best_global_step)}
    return list(passes.values())


def write_csv(path: Path, rows: list[dict]) -> None:
    """Writes a CSV; the keys of the first row are the header."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
