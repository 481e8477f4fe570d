"""Says what `dvc repro` would run, where, how long and for how much: `python -m stages.plan`. Runs nothing.

Times come from what the same stage took before, with the same model in the same place: metrics/runtime/ here or in
git's history, experiments included. They are scaled by the number of samples, which is rough; without such a run there
is none.
"""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

from vlm import compute
from vlm.compute import prices
from vlm.errors import InputError, reported
from vlm.params import Params, load_params, read_yaml

_RUNTIMES = {"final_eval": ["final_eval_raw", "final_eval"]}  # the other stages have one of their own name
_LOOK_BACK = 50  # commits
_HEAD = ["stage", "runs", "on", "samples", "time", "dollars", "estimated from"]


@dataclass(frozen=True)
class Before:
    """An earlier run of a stage's jobs."""

    where: str  # "here", or a commit
    model: str
    task: str
    runtimes: list[dict]


def main() -> None:
    params = load_params()
    why = stages_to_run()
    rows, seconds, dollars, known = [], 0.0, 0.0, True
    for stage, reason in why.items():
        if reason is None:
            rows.append([stage, "no", *[""] * (len(_HEAD) - 2)])
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
    """For every stage of dvc.yaml, in order: "yes" if DVC says so, "after <stage>" if one before it runs, or None."""
    done = subprocess.run(["dvc", "status", "--json"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"dvc status: {(done.stderr.strip() or 'failed').splitlines()[-1]}")
    changed = json.loads(done.stdout.strip().splitlines()[-1])
    reasons: dict[str, str | None] = {}
    makers: dict[str, str] = {}
    for name, stage in read_yaml("dvc.yaml")["stages"].items():  # it lists them in the order in which they run
        before = [makers[dep] for dep in stage["deps"] if dep in makers and reasons[makers[dep]]]
        reasons[name] = "yes" if name in changed else f"after {before[0]}" if before else None
        for out in [*stage["outs"], *stage.get("metrics", [])]:
            makers[out if isinstance(out, str) else next(iter(out))] = name
    return reasons


def estimate(
    params: Params, stage: str, gpu: str | None, price: float, samples: int | None
) -> tuple[float | None, float | None, str]:
    """Seconds, dollars, and the run that they come from; `gpu` is None for this machine."""
    matching = [
        before
        for before in _history(stage)
        if stage == "prepare" or before.model == params.model.name
        if all(runtime.get("gpu") == gpu for runtime in before.runtimes)
    ]
    # A run of the same task if there is one, and then the newest
    chosen = min(matching, key=lambda before: before.task != params.task.name, default=None)
    if chosen is None:
        return None, None, f"no earlier run of {params.model.name} on {gpu or 'this machine'}"
    took, used = 0.0, 0.0
    for runtime in chosen.runtimes:
        handled = runtime.get("samples") or round(runtime["seconds"] * runtime.get("images_per_second", 0))
        scale = samples / handled if samples and handled else 1.0
        count = int((gpu or "").partition(":")[2] or 1)
        starting = max(0.0, runtime.get("gpu_seconds", 0.0) / count - runtime["seconds"]) if gpu else 0.0
        took += starting + runtime["seconds"] * scale
        used += (starting + runtime["seconds"] * scale) * price
    source = f"{chosen.where}" if chosen.task == params.task.name else f"{chosen.where}, on {chosen.task}"
    return took, used if gpu else None, source


def _history(stage: str) -> Iterator[Before]:
    """Earlier runs of a stage, the newest first: what lies here, then what commits and experiments hold."""
    names = [f"metrics/runtime/{name}.json" for name in _RUNTIMES.get(stage, [stage])]
    here = Path("dvc.lock")
    if here.exists() and all(Path(name).exists() for name in names):
        runtimes = [json.loads(Path(name).read_text(encoding="utf-8")) for name in names]
        yield from _before("here", stage, here.read_text(encoding="utf-8"), runtimes)
    commits = _git("log", "--all", f"--max-count={_LOOK_BACK}", "--format=%h", "--", names[-1]) or ""
    for commit in commits.split():
        texts = [_git("show", f"{commit}:{name}") for name in ["dvc.lock", *names]]
        if all(texts):
            yield from _before(commit, stage, texts[0], [json.loads(text) for text in texts[1:]])


def _before(where: str, stage: str, lock: str, runtimes: list[dict]) -> Iterator[Before]:
    run = YAML(typ="safe", pure=True).load(lock)["stages"].get(stage)
    if run is not None:
        chosen = run["params"]["params.yaml"]
        yield Before(where, chosen.get("model", ""), chosen.get("task", ""), runtimes)


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None


def _place(params: Params, stage: str) -> tuple[str, str | None, float]:
    """Where a stage runs, and, on Modal, its GPU and dollars per second."""
    if stage == "prepare" or compute.place(params.model, params.compute) == "local":
        return "this machine", None, 0.0
    return "Modal", *prices.gpu_of(params.model, params.modal, several=stage == "finetune")


def _samples(params: Params, stage: str) -> int | None:
    """How many samples a stage goes through; None where that is known only when the data is there."""
    rows = {name: getattr(params.prepare, name) for name in ("train", "validation", "test")}
    if stage == "prepare":
        return sum(rows.values()) if None not in rows.values() else None
    if stage == "finetune":
        return round(params.finetune.epochs * rows["train"]) if rows["train"] else None
    return rows["test"]


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def _money(place: str, dollars: float | None) -> str:
    if dollars is None:
        return "?" if place == "Modal" else "0"
    return f"{dollars:.2f}"


if __name__ == "__main__":
    with reported():
        main()
