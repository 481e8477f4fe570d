"""Runs the prompt search, writes its winner as a task, and asks the winner and the present prompt about test."""

import dataclasses
import shutil
from contextlib import ExitStack
from pathlib import Path

from vlm import compute
from vlm.config.params import Params
from vlm.config.prompts import candidates_file, load_candidates
from vlm.config.task import Task
from vlm.data import json_files
from vlm.evaluation import VALIDATION, Evaluation
from vlm.prompting import table, task_file
from vlm.prompting.candidates import wordings
from vlm.prompting.halving import PRESENT
from vlm.prompting.job import PromptSearch
from vlm.prompting.table import FOLDER

RUNTIME = "metrics/runtime/prompt_search.json"


def search(params: Params, file: Path | None = None, out: str | None = None) -> str:
    """Searches among the candidates of `file` and writes the winner as the task `out`; returns the result in one line.

    By default `file` is that of params.yaml, and `out` the task's name with _searched. All results are kept until
    everything is written, so a killed search repeats nothing. Raises InputError.
    """
    name = out or f"{params.task.name}_searched"
    task_file.require_writable(name)  # before hours of work
    job = job_of(params, file)
    # Rounds depend on each other, so a second container would have nothing to do.
    modal = params.modal.model_copy(update={"containers": 1})
    with ExitStack() as running:
        result = running.enter_context(compute.run(job, params.compute, modal))
        found = json_files.read(result / "search.json")
        winner, on_test = found["winner"], {}
        if winner != PRESENT:
            for candidate, task in ((PRESENT, params.task), (winner, job.wordings[winner].applied(params.task))):
                evaluation = compute.run(_evaluation(params, task), params.compute, params.modal)
                on_test[candidate] = running.enter_context(evaluation) / "structured.parquet"
        shutil.rmtree(FOLDER, ignore_errors=True)  # an earlier search's winner
        names = ("candidates.csv", "finalists.parquet", "search.json")
        compute.save(result, {name: f"{FOLDER}/{name}" for name in names} | {"runtime.json": RUNTIME})
        if on_test:
            table.write_tested(Path(FOLDER, "tested.parquet"), on_test)
            written = task_file.write(params.task, job.wordings[winner], name)
            shutil.copyfile(written, f"{FOLDER}/task.yaml")  # DVC keeps it with the answers
    cost = f"{len(job.wordings)} candidates for {found['asked'] / found['samples']:.1f} passes over validation"
    if winner == PRESENT:
        return f"{cost}; the present prompt is the best of them: there is no new task, and nothing to measure on test"
    return f"{cost}; {written} has the best prompt; `dvc exp run -S task={name}` uses it"


def write_nothing() -> None:
    """Writes the outputs of a search that is switched off."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    table.write_candidates(Path(FOLDER, "candidates.csv"), [], {}, None)
    json_files.write(f"{FOLDER}/search.json", {})
    json_files.write(RUNTIME, {"samples": 0, "seconds": 0.0, "samples_per_second": 0.0})


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


def _evaluation(params: Params, task: Task) -> Evaluation:
    """A task's structured answers to test, as structured_eval asks for them."""
    job = Evaluation.of(params.model_copy(update={"task": task}), structured=True)
    return dataclasses.replace(job, validation=None, calibrate="none", outlines_samples=0)
