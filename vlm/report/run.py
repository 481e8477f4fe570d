"""What was run: data, model, parameters, time and cost, from dvc.lock and metrics/runtime/."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.config.yaml_files import read_mapping
from vlm.data import dataset, json_files

if TYPE_CHECKING:
    from vlm.config.params import Params

_STAGES = ("prepare", "baseline_eval", "structured_eval", "finetune", "final_eval", "probe", "robustness")
_SPLITS = ("train", "validation", "test")


def facts(params: "Params", stale: Collection[str] = ()) -> dict[str, Any]:
    """The facts of the run: "data" and "model" as (name, value) pairs, "parameters" by key, and "stages" with times.

    Stages in `stale` are left out. Raises InputError if a file that exists cannot be read.
    """
    ran = parameters(lock(), stale)
    model, task = params.model, params.task
    source = task.source
    kind = "rendered badges" if source.badges else source.hub or f"folder {Path(source.folder or '').name}"
    rows = [(split, dataset.count(path)) for split in _SPLITS if (path := Path("data", f"{split}.parquet")).exists()]
    data = [
        ("Task", task.name),
        ("Source", kind),
        ("Labels", f"{len(task.labels)}"),
        ("Samples", ", ".join(f"{count:,} {split}" for split, count in rows)),
    ]
    if source.revision or source.sha256:
        data.append(("Revision", _short(source.revision or source.sha256)))
    file = f"configs/models/{model.name}.yaml:"
    tuned = {} if "finetune" in stale else _details("plots/finetune/details.json")
    facts_of_model = [
        ("Model", model.name),
        ("Repository", ran.get(f"{file}id", model.id)),
        ("Revision", _short(ran.get(f"{file}revision", model.revision) or "not pinned")),
        ("Dtype", ran.get(f"{file}options.dtype", model.dtype)),
    ]
    if "trainable_parameters" in tuned:
        facts_of_model.append(("Trained parameters", f"{tuned['trainable_parameters']:,}"))
        facts_of_model.append(("Steps", f"{tuned['steps']}, the best after {tuned['best_step']}"))
    stages = _runtimes(stale)
    return {"data": data, "model": facts_of_model, "parameters": ran, "stages": stages, "total": _total(stages)}


def lock() -> dict[str, Any]:
    """dvc.lock, which says what was run with which parameters; {} if nothing was run with DVC."""
    return read_mapping("dvc.lock") if Path("dvc.lock").exists() else {}


def stale(params: "Params") -> set[str]:
    """The stages that dvc.lock has with another model or task than `params`.

    DVC leaves what a stage wrote in place when it runs others only, so these have to be told from the rest. It writes
    dvc.lock after every stage, in `dvc exp run` too: inside a stage, it is up to date for the stages before.
    """
    now = {"model": params.model.name, "task": params.task.name}
    found = set()
    for name, stage in lock().get("stages", {}).items():
        ran = stage.get("params", {}).get("params.yaml", {})
        if any(ran.get(key, value) != value for key, value in now.items()):
            found.add(name)
    return found


def parameters(lock: Mapping[str, Any], stale: Collection[str] = ()) -> dict[str, Any]:
    """The parameters that the stages were run with: "finetune.lora.r" of params.yaml, "configs/models/X.yaml:id".

    Without those of stages in `stale`.
    """
    found: dict[str, Any] = {}
    for name in _STAGES:
        if name in stale:
            continue
        for file, values in lock.get("stages", {}).get(name, {}).get("params", {}).items():
            found |= _flat(values, "" if file == "params.yaml" else f"{file}:")
    return dict(sorted(found.items()))


def changes(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[dict[str, str]]:
    """The parameters that differ between two runs: key, here and there, as JSON; "" where there is no such key."""
    shown = [
        {side: json.dumps(run[key], ensure_ascii=False) if key in run else "" for side, run in sides} | {"key": key}
        for sides in [(("here", here), ("there", there))]
        for key in sorted({*here, *there})
    ]
    return [change for change in shown if change["here"] != change["there"]]


def _short(revision: str) -> str:
    """A hash with as many digits as people compare; the list of parameters has all of them."""
    kind, _, digits = revision.rpartition(":")
    return f"{kind}:{digits[:12]}…" if kind else revision[:12] + "…" * (len(revision) > 12)


def _flat(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _runtimes(stale: Collection[str]) -> list[dict[str, Any]]:
    """metrics/runtime/ by stage, without stages that had nothing to do: robustness can be switched off."""
    paths = {name: Path("metrics", "runtime", f"{name}.json") for name in _STAGES if name not in stale}
    found = [{"stage": name} | json_files.read(path) for name, path in paths.items() if path.exists()]
    return [runtime for runtime in found if runtime.get("samples") != 0]


def _total(stages: list[dict[str, Any]]) -> dict[str, float]:
    return {
        "seconds": sum(stage.get("seconds", 0) for stage in stages),
        "dollars": sum(stage.get("dollars", 0) for stage in stages),
    }


def _details(path: str) -> dict[str, Any]:
    return json_files.read(path) if Path(path).exists() else {}
