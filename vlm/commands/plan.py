"""`python -m vlm plan`: what `dvc repro` would run, where, how long and for how much. Runs nothing.

Times come from what the same stage took before, with the same model in the same place: metrics/runtime/ here or in
git's history, experiments included. They are scaled by the number of samples, which is rough; without such a run there
is none.
"""

import argparse
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from vlm import compute
from vlm.config import gpus
from vlm.config.errors import InputError
from vlm.config.params import Params, load_params
from vlm.config.yaml_files import read_yaml

_GPU_STAGES = ("baseline_eval", "structured_eval", "finetune", "final_eval")
_LOOK_BACK = 50  # commits
_HEAD = ["stage", "runs", "on", "samples", "time", "dollars", "estimated from"]


@dataclass(frozen=True)
class Before:
    """An earlier run of a stage."""

    where: str  # "here", or a commit
    model: str
    task: str
    runtime: dict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It has none."""


def main(asked: argparse.Namespace) -> None:
    params = load_params()
    rows, seconds, dollars, known = [], 0.0, 0.0, True
    for stage, reason in stages_to_run().items():
        if reason is None or stage not in (*_GPU_STAGES, "prepare"):
            # The stages that only measure take seconds.
            rows.append([stage, reason or "no", *[""] * (len(_HEAD) - 2)])
            continue
        place, gpu, price = _place(params, stage)
        samples = _samples(params, stage)
        took, cost, source = estimate(params, stage, gpu, price, samples)
        seconds, dollars, known = seconds + (took or 0), dollars + (cost or 0), known and took is not None
        shown = [str(samples or "?"), "?" if took is None else _clock(took), _money(place, cost), source]
        rows.append([stage, reason, f"Modal, {gpu}" if gpu else place, *shown])
    if seconds:
        rows.append(["total" if known else "total of the known", "", "", "", _clock(seconds), f"{dollars:.2f}", ""])
    widths = [max(len(row[column]) for row in [_HEAD, *rows]) for column in range(len(_HEAD))]
    for row in [_HEAD, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def stages_to_run() -> dict[str, str | None]:
    """For every stage of dvc.yaml, in order: "yes" if DVC says so, "after <stage>" if one before it runs, or None.

    Raises InputError if DVC cannot tell, for example because a run is under way.
    """
    done = subprocess.run(["dvc", "status", "--json"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(_run_under_way() or f"dvc status: {(done.stderr.strip() or 'failed').splitlines()[-1]}")
    changed = json.loads(done.stdout.strip().splitlines()[-1])
    stages = _stages()
    makers = {out: name for name, stage in stages.items() for out in _paths(stage.get("outs"), stage.get("metrics"))}
    reasons: dict[str, str | None] = {}

    def reason(name: str) -> str | None:
        if name not in reasons:
            before = [makers[dep] for dep in _paths(stages[name]["deps"]) if dep in makers]
            after = next((f"after {maker}" for maker in before if reason(maker)), None)
            reasons[name] = "yes" if name in changed else after
        return reasons[name]

    return {name: reason(name) for name in stages}


def _stages() -> dict[str, dict[str, Any]]:
    """dvc.yaml's stages by name, with those of a matrix written out as DVC does: measure@final_eval."""
    found = {}
    for name, stage in read_yaml("dvc.yaml")["stages"].items():
        for value in stage.get("matrix", {}).get("name", [None]):
            text = json.dumps(stage).replace("${item.name}", value or "")
            found[f"{name}@{value}" if value else name] = json.loads(text)
    return found


def _paths(*lists: list[str | dict] | None) -> list[str]:
    return [entry if isinstance(entry, str) else next(iter(entry)) for each in lists for entry in each or []]


def _run_under_way() -> str | None:
    """Which process holds DVC's lock, if one that is alive does."""
    try:
        locks = json.loads(Path(".dvc/tmp/rwlock").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    for holders in locks.values():
        writers = holders.get("write") or {}
        for holder in [writers, *holders.get("read", [])]:
            if holder and psutil.pid_exists(holder["pid"]):
                return f"a run is under way (process {holder['pid']}: {holder['cmd']}); ask again when it has ended"
    return None


def estimate(
    params: Params, stage: str, gpu: str | None, price: float, samples: int | None
) -> tuple[float | None, float | None, str]:
    """Seconds, dollars, and the run that they come from; `gpu` is None for this machine."""
    matching = [
        before
        for before in _history(stage)
        if stage == "prepare" or before.model == params.model.name
        if before.runtime.get("gpu") == gpu
    ]
    # A run of the same task if there is one, and then the newest
    chosen = min(matching, key=lambda before: before.task != params.task.name, default=None)
    if chosen is None:
        return None, None, f"no earlier run of {params.model.name} on {gpu or 'this machine'}"
    runtime = chosen.runtime
    handled = runtime.get("samples") or round(runtime["seconds"] * runtime.get("images_per_second", 0))
    scale = samples / handled if samples and handled else 1.0
    count = int((gpu or "").partition(":")[2] or 1)
    starting = max(0.0, runtime.get("gpu_seconds", 0.0) / count - runtime["seconds"]) if gpu else 0.0
    took = starting + runtime["seconds"] * scale
    source = f"{chosen.where}" if chosen.task == params.task.name else f"{chosen.where}, on {chosen.task}"
    return took, took * price if gpu else None, source


def _history(stage: str) -> Iterator[Before]:
    """Earlier runs of a stage, the newest first: what lies here, then what commits and experiments hold."""
    name = f"metrics/runtime/{stage}.json"
    here = Path("dvc.lock")
    if here.exists() and Path(name).exists():
        text = Path(name).read_text(encoding="utf-8")
        yield from _before("here", stage, here.read_text(encoding="utf-8"), json.loads(text))
    commits = _git("log", "--all", f"--max-count={_LOOK_BACK}", "--format=%h", "--", name) or ""
    for commit in commits.split():
        lock, text = _git("show", f"{commit}:dvc.lock"), _git("show", f"{commit}:{name}")
        if lock and text:
            yield from _before(commit, stage, lock, json.loads(text))


def _before(where: str, stage: str, lock: str, runtime: dict) -> Iterator[Before]:
    run = yaml.safe_load(lock)["stages"].get(stage)
    if run is not None:
        chosen = run["params"]["params.yaml"]
        yield Before(where, chosen.get("model", ""), chosen.get("task", ""), runtime)


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None


def _place(params: Params, stage: str) -> tuple[str, str | None, float]:
    """Where a stage runs, and, on Modal, its GPU and dollars per second."""
    if stage == "prepare" or compute.place(params.model, params.compute) == "local":
        return "this machine", None, 0.0
    return "Modal", *gpus.gpu_of(params.model, params.modal, several=stage == "finetune")


def _samples(params: Params, stage: str) -> int | None:
    """How many samples a stage goes through; None where that is known only when the data is there."""
    rows = {name: getattr(params.prepare, name) for name in ("train", "validation", "test")}
    if stage == "prepare":
        return sum(rows.values()) if None not in rows.values() else None
    if stage == "finetune":
        return round(params.finetune.epochs * rows["train"]) if rows["train"] else None
    return rows["test"] and rows["test"] * (2 if stage == "final_eval" else 1)  # final_eval answers twice


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def _money(place: str, dollars: float | None) -> str:
    if dollars is None:
        return "?" if place == "Modal" else "0"
    return f"{dollars:.2f}"
