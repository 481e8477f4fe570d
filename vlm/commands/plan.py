"""`python -m vlm plan`: shows what `dvc repro` would run, where, for how long and at what cost. Runs nothing.

Times are estimated from an earlier run of the same stage with the same model on the same GPU or machine: from
metrics/runtime/ in the working tree or in git's history, including experiments. They are scaled by the number of
samples, which is only approximate. Without such a run there is no estimate.

For a fine-tune on a GPU, a last line says how it fits into the GPU's memory. That takes the model's small files, such
as config.json, which are downloaded from the Hub if they are not in its cache.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from vlm import compute
from vlm.compute import local
from vlm.config import gpus
from vlm.config.errors import InputError
from vlm.config.params import Params, load_params
from vlm.config.yaml_files import read_yaml
from vlm.training import duration

_GPU_STAGES = ("baseline_eval", "structured_eval", "finetune", "final_eval", "probe", "robustness", "prompt_search")
_LOCAL_STAGES = ("prepare", "export", "edge_eval")  # those that take time on this machine, wherever the others run
_LOOK_BACK = 50  # commits
_HEAD = ["stage", "runs", "on", "samples", "time", "dollars", "estimated from"]


@dataclass(frozen=True)
class Before:
    """An earlier run of a stage."""

    where: str  # "here", or a commit
    model: str
    task: str
    runtime: dict


@dataclass(frozen=True)
class Gpu:
    """The GPUs of a fine-tune."""

    name: str  # "L4", "H100:4"
    count: int
    memory: int  # of each, in bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command has no arguments."""


def main(arguments: argparse.Namespace) -> None:
    params = load_params()
    rows, seconds, dollars, known = [], 0.0, 0.0, True
    stages = stages_to_run()
    timed = {*_GPU_STAGES, *_LOCAL_STAGES} - {
        name for name in ("robustness", "prompt_search") if not getattr(params, name).enabled
    }
    for stage, reason in stages.items():
        if reason is None or stage not in timed:
            # The other stages only measure and take seconds.
            rows.append([stage, reason or "no", *[""] * (len(_HEAD) - 2)])
            continue
        container = _container(params, stage)
        samples = _samples(params, stage)
        took, cost, source = estimate(params, stage, container, samples)
        seconds, dollars, known = seconds + (took or 0), dollars + (cost or 0), known and took is not None
        place = f"Modal, {container.gpu}" if container else "this machine"
        time = "?" if took is None else _clock(took)
        count = "" if stage == "export" else str(samples or "?")
        rows.append([stage, reason, place, count, time, _money(container, cost), source])
    if seconds:
        rows.append(["total" if known else "total of known", "", "", "", _clock(seconds), f"{dollars:.2f}", ""])
    widths = [max(len(row[column]) for row in [_HEAD, *rows]) for column in range(len(_HEAD))]
    for row in [_HEAD, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if stages["finetune"] and params.finetune.epochs is None and (train := params.prepare.train):
        few, many = (duration.epochs(train, known) for known in (True, False))
        if few < many:  # which of them, the job finds out
            print(f"finetune: {few} epochs; {many} if the untrained model gets most of validation wrong")
    sys.stdout.flush()  # the rest may wait for the network
    if stages["finetune"] and (gpu := _gpu(params)):
        # Before `prepare` has run, data/train.parquet may be that of another task or size.
        fit = "memory not known until prepare has run" if stages["prepare"] else _fit(params, gpu)
        print(f"finetune on {gpu.name}: {fit}")


def stages_to_run() -> dict[str, str | None]:
    """Maps the stages of dvc.yaml, in order, to "yes" if changed, "after <stage>" if an earlier stage runs, or None.

    Raises InputError if `dvc status` fails, for example because a run is in progress.
    """
    done = subprocess.run(["dvc", "status", "--json"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(_run_in_progress() or f"dvc status: {(done.stderr.strip() or 'failed').splitlines()[-1]}")
    changed = json.loads(done.stdout.strip().splitlines()[-1])
    stages = _stages()
    written = {name: _paths(stage.get("outs"), stage.get("metrics")) for name, stage in stages.items()}
    reasons: dict[str, str | None] = {}

    def reason(name: str) -> str | None:
        if name not in reasons:
            needed = _paths(stages[name]["deps"])
            before = [other for dep in needed for other in written if any(_overlap(dep, out) for out in written[other])]
            after = next((f"after {maker}" for maker in before if reason(maker)), None)
            reasons[name] = "yes" if name in changed else after
        return reasons[name]

    return {name: reason(name) for name in stages}


def _stages() -> dict[str, dict[str, Any]]:
    """The stages of dvc.yaml by name, with those of a matrix expanded as in DVC: measure@final_eval."""
    found = {}
    for name, stage in read_yaml("dvc.yaml")["stages"].items():
        for item in stage.get("matrix", {}).get("name", [""]):
            text = json.dumps(stage).replace("${item.name}", item)
            found[f"{name}@{item}" if item else name] = json.loads(text)
    return found


def _overlap(one: str, other: str) -> bool:
    """Whether two paths are the same, or one is a folder that contains the other."""
    return f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")


def _paths(*lists: list[str | dict] | None) -> list[str]:
    return [entry if isinstance(entry, str) else next(iter(entry)) for each in lists for entry in each or []]


def _run_in_progress() -> str | None:
    """A message that names the process that holds DVC's lock; None if no living process holds it."""
    try:
        locks = json.loads(Path(".dvc/tmp/rwlock").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    readers = [holder for holders in locks.get("read", {}).values() for holder in holders]
    for holder in [*locks.get("write", {}).values(), *readers]:
        if psutil.pid_exists(holder["pid"]):
            return f"a run is in progress (process {holder['pid']}: {holder['cmd']}); try again when it has finished"
    return None


def estimate(
    params: Params, stage: str, container: gpus.Container | None, samples: int | None
) -> tuple[float | None, float | None, str]:
    """Estimates seconds and dollars, and names the run that they come from; `container` is None for this machine.

    Containers that share an evaluation divide its time by their number; its cost stays the same, except that each of
    them has to start.
    """
    gpu = container.gpu if container else None
    matching = [
        run
        for run in _history(stage)
        if stage == "prepare" or run.model == params.model.name
        if run.runtime.get("gpu") == gpu and run.runtime.get("samples") != 0  # as of robustness, if it is switched off
    ]
    # Prefer a run of the same task, then the newest run.
    chosen = min(matching, key=lambda run: run.task != params.task.name, default=None)
    if chosen is None:
        return None, None, f"no earlier run of {params.model.name} on {gpu or 'this machine'}"
    runtime = chosen.runtime
    handled = runtime.get("samples")
    scale = samples / handled if samples and handled else 1.0
    source = f"{chosen.where}" if chosen.task == params.task.name else f"{chosen.where}, on {chosen.task}"
    if container is None:
        return runtime["seconds"] * scale, None, source
    containers = params.modal.containers if stage != "finetune" else 1
    earlier = runtime.get("containers", 1)
    starting = max(0.0, runtime.get("gpu_seconds", 0.0) / container.count / earlier - runtime["seconds"])
    took = starting + runtime["seconds"] * earlier * scale / containers
    return took, took * container.dollars_per_second * containers, source


def _history(stage: str) -> Iterator[Before]:
    """Yields earlier runs of a stage, newest first: from the working tree, then from commits and experiments."""
    name = f"metrics/runtime/{stage}.json"
    here = Path("dvc.lock")
    if here.exists() and Path(name).exists():
        text = Path(name).read_text(encoding="utf-8")
        yield from _run_at("here", stage, here.read_text(encoding="utf-8"), json.loads(text))
    commits = _git("log", "--all", f"--max-count={_LOOK_BACK}", "--format=%h", "--", name) or ""
    for commit in commits.split():
        lock, text = _git("show", f"{commit}:dvc.lock"), _git("show", f"{commit}:{name}")
        if lock and text:
            yield from _run_at(commit, stage, lock, json.loads(text))


def _run_at(where: str, stage: str, lock: str, runtime: dict) -> Iterator[Before]:
    run = yaml.safe_load(lock)["stages"].get(stage)
    if run is not None:
        chosen = run["params"]["params.yaml"]
        yield Before(where, chosen.get("model", ""), chosen.get("task", ""), runtime)


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None


def _container(params: Params, stage: str) -> gpus.Container | None:
    """The container in which a stage runs on Modal, or each of several; None if it runs on this machine."""
    if stage in _LOCAL_STAGES or compute.place(params.model, params.compute) == "local":
        return None
    return gpus.container_for(params.model, params.modal, several=stage == "finetune")


def _gpu(params: Params) -> Gpu | None:
    """The GPU or GPUs that finetune runs on; None if it runs on a CPU."""
    container = _container(params, "finetune")
    if container:
        return Gpu(container.gpu, container.count, round(gpus.memory_gb(container.gpu) * 1e9))
    here = local.gpus()
    count = len(here)
    if not here:
        return None
    query = ["nvidia-smi", f"--id={','.join(here)}", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    listed = subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines()
    sizes = [(int(mib), name) for name, _, mib in (line.rpartition(", ") for line in listed) if mib.isdigit()]
    if not sizes:  # a GPU that shares the machine's memory
        return None
    mib, name = min(sizes)
    return Gpu(name.removeprefix("NVIDIA ") + (f":{count}" if count > 1 else ""), count, int(mib) * 2**20)


def _fit(params: Params, gpu: Gpu) -> str:
    """How many samples at once fit into the GPU's memory, or what is missing to tell."""
    knobs = params.finetune
    batch = max(1, knobs.batch_size // gpu.count)
    try:
        from vlm.training import estimate, footprint

        need = estimate.of_params(params, "data/train.parquet")
    except InputError as error:
        return f"memory not known: {error}"
    except Exception as error:  # whatever a new architecture raises; the table above is still right
        message = (str(error).strip() or "no message").splitlines()[0]
        return f"memory not known: {type(error).__name__} in the estimate: {message}"
    choices = footprint.candidates(batch, knobs.micro_batch, knobs.gradient_checkpointing)
    fitting = footprint.first_fitting(choices, need, gpu.memory)
    fits = fitting < len(choices)
    chosen = choices[fitting] if fits else choices[-1]
    of_all = f"{chosen.samples} of {batch} samples at once" + (" on each" if gpu.count > 1 else "")
    how = " with gradient checkpointing" if chosen.checkpointing else ""
    takes = f"about {need.peak(chosen) / 1e9:.0f} of {gpu.memory / 1e9:.0f} GB (estimate)"
    if not fits:
        lower = "finetune.micro_batch" if knobs.micro_batch else "image.max_tokens"
        return f"may not fit: {of_all}{how} would take {takes}; lower {lower} or use a larger GPU"
    return f"{of_all}{how}, {takes}"


def _samples(params: Params, stage: str) -> int | None:
    """The number of samples that a stage processes.

    None if it depends on data that may not exist yet, and for export, whose time depends on the model.
    """
    rows = {name: getattr(params.prepare, name) for name in ("train", "validation", "test")}
    if stage == "prepare":
        return sum(rows.values()) if None not in rows.values() else None
    if stage == "export":
        return None
    if stage == "edge_eval":
        asked = rows["test"] and min(params.export.samples or rows["test"], rows["test"])
        return asked and asked * (1 + len(params.export.sweep))
    if stage == "finetune":
        if not rows["train"]:
            return None
        epochs = params.finetune.epochs or duration.epochs(rows["train"], known=True)
        return round(epochs * rows["train"])
    if stage == "robustness":
        knobs = params.robustness
        pictures = 1 + len(knobs.corruptions) * len(knobs.severities)  # of each sample, for each of two models
        return rows["test"] and 2 * pictures * min(knobs.samples or rows["test"], rows["test"])
    if stage == "prompt_search":  # at most; and if there is a better prompt, both answer the test split
        known = rows["validation"] and rows["test"]
        return known and round(params.prompt_search.passes * rows["validation"]) + 2 * rows["test"]
    answered = {
        "baseline_eval": ["test"],
        "structured_eval": ["test", "validation"],
        "final_eval": ["test", "test", "validation"],  # raw, structured, structured
        "probe": ["train", "validation", "test"],
    }[stage]
    if not all(rows[split] for split in answered):
        return None
    return sum(rows[split] for split in answered) + _prior_samples(params, stage)


def _prior_samples(params: Params, stage: str) -> int:
    """The number of training pictures that a stage asks about for the label prior."""
    knobs = {"structured_eval": params.structured_eval, "final_eval": params.final_eval}.get(stage)
    if knobs is None or knobs.prior != "batch" or params.structured_eval.engine != "posterior":
        return 0
    wanted = params.structured_eval.prior_samples
    return min(wanted, params.prepare.train or wanted)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def _money(container: gpus.Container | None, dollars: float | None) -> str:
    if dollars is None:
        return "?" if container else "0"
    return f"{dollars:.2f}"
