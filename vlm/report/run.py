"""What was run: data, model, parameters, time and cost, from dvc.lock and metrics/runtime/."""

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.config.yaml_files import read_mapping
from vlm.data import dataset, json_files

if TYPE_CHECKING:
    from vlm.config.params import Params

_STAGES = (
    "prepare",
    "baseline_eval",
    "structured_eval",
    "finetune",
    "final_eval",
    "export",
    "edge_eval",
    "probe",
    "robustness",
)
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


def stale(lock: Mapping[str, Any], model: str, task: str) -> set[str]:
    """The stages that a dvc.lock has with another model or task than params.yaml, which has `model` and `task`.

    DVC leaves what a stage wrote in place when it runs others only, so these have to be told from the rest. It writes
    dvc.lock after every stage, in `dvc exp run` too: inside a stage, it is up to date for the stages before.
    """
    now = {"model": model, "task": task}
    found = set()
    for name, stage in lock.get("stages", {}).items():
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
        if name not in stale:
            found |= _parameters_of(lock.get("stages", {}).get(name, {}))
    return dict(sorted(found.items()))


def changed_parameters(
    here: Mapping[str, Any], there: Mapping[str, Any], stale: Collection[str] = ()
) -> list[dict[str, str]]:
    """The parameters that differ between two locks for a stage that both have: key, here and there, as JSON.

    "" where there is no such key. Without those of stages in `stale`.
    """
    found = set()
    for stages in _in_both(here, there, stale):
        ran = [_parameters_of(stage) for stage in stages]
        for key in {*ran[0], *ran[1]}:
            ours, theirs = (json.dumps(one[key], ensure_ascii=False) if key in one else "" for one in ran)
            if ours != theirs:
                found.add((key, ours, theirs))
    return [{"key": key, "here": ours, "there": theirs} for key, ours, theirs in sorted(found)]


def changed_inputs(here: Mapping[str, Any], there: Mapping[str, Any], stale: Collection[str] = ()) -> list[str]:
    """The files and folders, code and configs/, whose content differs between two locks for a stage that both have.

    Without those of stages in `stale`. What stages write is left out: it follows from the rest.
    """
    every = [stage for lock in (here, there) for stage in lock.get("stages", {}).values()]
    written = {out["path"] for stage in every for out in stage.get("outs", [])}
    found: set[str] = set()
    for stages in _in_both(here, there, stale):
        ours, theirs = ({dep["path"]: dep.get("md5") for dep in stage.get("deps", [])} for stage in stages)
        found |= {path for path in {*ours, *theirs} if ours.get(path) != theirs.get(path)}
    return sorted(path for path in found if not any(f"{path}/".startswith(f"{out}/") for out in written))


def _in_both(
    here: Mapping[str, Any], there: Mapping[str, Any], stale: Collection[str]
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """What two locks say about each stage that both have, without stages in `stale`."""
    ours, theirs = here.get("stages", {}), there.get("stages", {})
    for name in _STAGES:
        if name not in stale and name in ours and name in theirs:
            yield ours[name], theirs[name]


def _parameters_of(stage: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for file, values in stage.get("params", {}).items():
        found |= _flat(values, "" if file == "params.yaml" else f"{file}:")
    return found


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
