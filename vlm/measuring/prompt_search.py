"""Runs the prompt search and says what its winner is worth: on validation, where it was chosen, and once on test."""

import dataclasses
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm import compute
from vlm.config.params import Params
from vlm.config.prompts import candidates_file, load_candidates
from vlm.data import json_files
from vlm.evaluation import VALIDATION, Evaluation
from vlm.measuring.comparison import compare
from vlm.prompting import PromptSearch, task_file
from vlm.prompting.candidates import wordings
from vlm.prompting.halving import PRESENT

if TYPE_CHECKING:
    import pandas as pd

OUT, RUNTIME = "plots/prompt_search", "metrics/runtime/prompt_search.json"


def search(params: Params, file: Path | None = None, out: str | None = None) -> list[str]:
    """Searches among the candidates of `file` and writes the winner as the task `out`; returns the result in lines.

    By default `file` is that of params.yaml, and `out` the task's name with _searched. Writes candidates.csv,
    details.json and, if a prompt is better than the present one, task.yaml to plots/prompt_search/. Raises InputError.
    """
    name = out or f"{params.task.name}_searched"
    task_file.require_writable(name)  # before hours of work
    job = job_of(params, file)
    # Rounds depend on each other, so a second container would have nothing to do.
    modal = params.modal.model_copy(update={"containers": 1})
    with compute.run(job, params.compute, modal) as result:
        details = _on_validation(result)
        shutil.rmtree(OUT, ignore_errors=True)  # an earlier search's task.yaml
        compute.save(result, {"candidates.csv": f"{OUT}/candidates.csv", "runtime.json": RUNTIME})
    lines = [_validation_line(details, len(job.wordings))]
    if details["winner"] == PRESENT:
        lines.append("the present prompt is the best of them: there is no new task, and nothing to measure on test")
    else:
        winner = job.wordings[details["winner"]]
        details["test"] = _on_test(params, params.task, winner.applied(params.task))
        written = task_file.write(params.task, winner, name)
        shutil.copyfile(written, f"{OUT}/task.yaml")  # DVC keeps it with the table
        lines += [_test_line(details["test"]), f"{written} has the best prompt; `dvc exp run -S task={name}` uses it"]
    json_files.write(f"{OUT}/details.json", details)
    return lines


def job_of(params: Params, file: Path | None = None) -> PromptSearch:
    """The search among the candidates of `file`, or of params.yaml's. Raises InputError."""
    knobs, structured = params.prompt_search, params.structured_eval
    candidates = load_candidates(file or candidates_file(knobs.candidates, params.task), params.task)
    return PromptSearch(
        task=params.task,
        model=params.model,
        image=params.image,
        batch_size=params.evaluation.batch_size,
        data=VALIDATION,
        wordings=wordings(candidates, params.task, knobs.sample, params.seed),
        passes=knobs.passes,
        corrected=structured.engine == "posterior" and structured.prior != "none",
        seed=params.seed,
    )


def _on_validation(result: Path) -> dict[str, Any]:
    """search.json, with the winner compared with the present prompt, and what the choice is worth.

    `chosen_on` compares them on the whole split, which flatters the winner, because it was chosen there. `held_out`
    compares the candidate that was the best one on half of the split, on the other half.
    """
    import pandas as pd

    found, answers = json_files.read(result / "search.json"), pd.read_parquet(result / "finalists.parquet")
    found["chosen_on"] = _compared(answers, found["winner"])
    found["held_out"] = _compared(answers[answers["fresh"]], found["best_of_half"])
    return found


def _compared(answers: "pd.DataFrame", candidate: int) -> dict[str, Any]:
    before, after = (answers[answers["candidate"] == number] for number in (PRESENT, candidate))
    return _values(before, after) | {
        "present_log_loss": float(before["log_loss"].mean()),
        "log_loss": float(after["log_loss"].mean()),
    }


def _values(before: "pd.DataFrame", after: "pd.DataFrame") -> dict[str, Any]:
    right = [float((frame["label"] == frame["predicted"]).mean()) for frame in (before, after)]
    return {"samples": len(before), "present_accuracy": right[0], "accuracy": right[1], **compare(before, after)}


def _on_test(params: Params, *tasks: Any) -> dict[str, Any]:
    """The present and the new task's structured answers to test, compared, as structured_eval asks for them."""
    import pandas as pd

    frames = []
    with tempfile.TemporaryDirectory() as folder:
        for task in tasks:
            job = Evaluation.of(params.model_copy(update={"task": task}), structured=True)
            job = dataclasses.replace(job, validation=None, calibrate="none", outlines_samples=0)
            with compute.run(job, params.compute, params.modal) as result:
                shutil.copyfile(result / "structured.parquet", Path(folder, "answers.parquet"))
            frames.append(pd.read_parquet(Path(folder, "answers.parquet")))
    return _values(*frames)


def _validation_line(details: dict[str, Any], candidates: int) -> str:
    here, held = details["chosen_on"], details["held_out"]
    passes = details["asked"] / details["samples"]
    return (
        f"{candidates} candidates for {passes:.1f} passes over validation; the best one has log loss "
        f"{here['log_loss']:.3f} ({here['present_log_loss']:.3f} with the present prompt) and accuracy "
        f"{_percent(here['accuracy'])} ({_percent(here['present_accuracy'])}) on the {here['samples']} samples that "
        f"chose it. The choice after half of them gains {_gain(held)} on the other half"
    )


def _test_line(test: dict[str, Any]) -> str:
    return (
        f"on test: {_percent(test['accuracy'])} of {test['samples']}, {_percent(test['present_accuracy'])} with the "
        f"present prompt; a gain of {_gain(test)}, p = {test['mcnemar_p']:.2g}"
    )


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def _gain(compared: dict[str, Any]) -> str:
    gain, low, high = (100 * compared[key] for key in ("gain", "gain_low", "gain_high"))
    return f"{gain:+.1f} points ({low:+.1f} to {high:+.1f})"
