"""Measures what the prompt search's winner is worth: on validation, where it was chosen, and on test."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.data import json_files
from vlm.measuring.comparison import compare
from vlm.prompting.halving import PRESENT

if TYPE_CHECKING:
    import pandas as pd


def measure(folder: Path) -> dict[str, Any]:
    """Measures the answers in the prompt search's `folder` (see vlm/prompting/table.py) and returns all results.

    They are search.json's values and, each with both prompts' accuracies, the gain, its interval and McNemar's p:
    `chosen_on`, the winner on all of validation, which flatters it, because it was chosen there; `held_out`, the best
    candidate on half of validation, on the other half; and `test`, unless the present prompt won. The first two also
    have the log losses, in nats. Writes details.json and a copy of candidates.csv to plots/prompt_search/. If the
    search is switched off, the results are empty.
    """
    import pandas as pd

    found = json_files.read(folder / "search.json")
    if found:
        answers = pd.read_parquet(folder / "finalists.parquet")
        found["chosen_on"] = _on_validation(answers, found["winner"])
        found["held_out"] = _on_validation(answers[answers["fresh"]], found["best_of_half"])
        if found["winner"] != PRESENT:
            found["test"] = _values(*_both(pd.read_parquet(folder / "tested.parquet"), found["winner"]))
    plots = Path("plots", "prompt_search")
    shutil.rmtree(plots, ignore_errors=True)
    plots.mkdir(parents=True)
    shutil.copyfile(folder / "candidates.csv", plots / "candidates.csv")
    json_files.write(plots / "details.json", found)
    return found


def lines(found: dict[str, Any]) -> list[str]:
    """What `measure` found, in a line for each split that was asked about."""
    here, held, test = found["chosen_on"], found["held_out"], found.get("test", {})
    if found["winner"] == PRESENT:
        return [
            f"on validation: the present prompt has log loss {here['log_loss']:.3f} and accuracy "
            f"{_percent(here['accuracy'])} on {here['samples']} samples; no candidate that was left has a lower loss"
        ]
    return [
        f"on validation: log loss {here['log_loss']:.3f} ({here['present_log_loss']:.3f} with the present prompt) and "
        f"accuracy {_percent(here['accuracy'])} ({_percent(here['present_accuracy'])}) on the {here['samples']} "
        f"samples that chose the prompt; the choice after half of them gains {_gain(held)} on the other half",
        f"on test: {_percent(test['accuracy'])} of {test['samples']}, {_percent(test['present_accuracy'])} with the "
        f"present prompt; a gain of {_gain(test)}, p = {test['mcnemar_p']:.2g}",
    ]


def _both(answers: "pd.DataFrame", candidate: int) -> "tuple[pd.DataFrame, pd.DataFrame]":
    """The answers with the present prompt, and those with the candidate's."""
    return answers[answers["candidate"] == PRESENT], answers[answers["candidate"] == candidate]


def _on_validation(answers: "pd.DataFrame", candidate: int) -> dict[str, Any]:
    before, after = _both(answers, candidate)
    return _values(before, after) | {
        "present_log_loss": float(before["log_loss"].mean()),
        "log_loss": float(after["log_loss"].mean()),
    }


def _values(before: "pd.DataFrame", after: "pd.DataFrame") -> dict[str, Any]:
    right = [float((frame["label"] == frame["predicted"]).mean()) for frame in (before, after)]
    return {"samples": len(before), "present_accuracy": right[0], "accuracy": right[1], **compare(before, after)}


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def _gain(compared: dict[str, Any]) -> str:
    gain, low, high = (100 * compared[key] for key in ("gain", "gain_low", "gain_high"))
    return f"{gain:+.1f} points ({low:+.1f} to {high:+.1f})"
