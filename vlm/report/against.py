"""Another revision or experiment beside this one: which answers changed, and whether that is more than chance."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from vlm.config.errors import InputError
from vlm.config.params import load_params
from vlm.data import dataset, predictions
from vlm.measuring.answers import Predictions
from vlm.measuring.comparison import compare
from vlm.measuring.revisions import Revision
from vlm.report import run
from vlm.report.answers import PLAIN, TEST, titles

_NOT_SHARED = -2
_DECISIONS = "configs/decisions"


def compare_with(revision: str, here: Mapping[str, Predictions], stale: Collection[str] = ()) -> dict[str, Any]:
    """Compares the predictions `here` with those of the same names at `revision`, on the test samples of both.

    A sample is of both if its id and its picture are, and if all predictions there answer it. It counts as right if the
    answer is its label here, so that a label that was corrected in between changes no comparison; `relabelled` is the
    number of such samples. In `models`, `predicted` has a place among `labels` per test sample, -1 for no label and -2
    for a sample that is not shared.
    `changed` are the parameters that differ and `inputs` the files, of stages that are in both dvc.lock; None without.
    Stages in `stale` are not compared, and neither are those that ran with another model or task than the params.yaml
    of the revision: `left_out` are their predictions. Raises InputError if there is nothing to compare.
    """
    there, lock, title = Revision(revision), run.lock(), titles(here)
    here = {name: answers for name, answers in here.items() if name != PLAIN}  # it is of structured_eval's file
    their_lock = _lock_of(there)
    their_stale = _stale_of(there, their_lock)
    left_out = [name for name in here if predictions.stage(name) in their_stale]
    theirs = _load([name for name in here if name not in left_out], there)
    shared = _shared_ids(there, lock, their_lock, next(iter(theirs.values())))
    # What a revision committed need not be of one run: its predictions can be older than its test split.
    shared &= set.intersection(*({*table.frame["id"]} for table in theirs.values()))
    if not shared:
        raise InputError(
            f"--against: {revision}: shares no test sample with this run, so the two cannot be compared; both need the "
            f"same task, seed and source"
        )
    ids = next(iter(here.values())).frame["id"]
    return {
        "revision": revision,
        "shared": len(shared),
        "relabelled": _relabelled(next(iter(here.values())), next(iter(theirs.values())), shared),
        "labels": list(next(iter(theirs.values())).labels),
        "missing": [title[name] for name in here if name not in theirs and name not in left_out],
        "left_out": [title[name] for name in left_out],
        **_differences(lock, their_lock, {*stale, *their_stale}, there),
        "models": {
            name: {"title": title[name], **_pair(here[name], theirs[name], shared, list(ids))} for name in theirs
        },
    }


def _load(names: Sequence[str], there: Revision) -> dict[str, Predictions]:
    """Those of the predictions that the revision has. Raises InputError if it has none."""
    if not names:
        raise InputError(
            f"--against: {there.name}: all its predictions are of another model or task than its params.yaml"
        )
    found: dict[str, Predictions] = {}
    reasons = []
    for name in names:
        try:
            found[name] = Predictions.load(name, there)
        except InputError as error:
            reasons.append(error)
    if not found:
        raise InputError(f"--against: {reasons[0]}")
    return found


def _differences(lock: dict, their_lock: dict, stale: Collection[str], there: Revision) -> dict[str, Any]:
    """The parameters and the files that differ, according to both dvc.lock, without those of stages in `stale`."""
    if not (lock and their_lock):
        return {"changed": None, "inputs": None}
    inputs = run.changed_inputs(lock, their_lock, stale)
    if _DECISIONS in inputs:  # the decisions of all tasks
        inputs.remove(_DECISIONS)
        inputs += _changed_decisions(there)
    return {"changed": run.changed_parameters(lock, their_lock, stale), "inputs": sorted(inputs)}


def _changed_decisions(there: Revision) -> list[str]:
    """The files in configs/decisions/ that the task's file names, here or at the revision, if their content differs."""
    now, then = load_params().task.decisions, _decisions_of(there)
    ours = Path(now).read_bytes() if now and Path(now).exists() else None
    theirs = there.open(then).read() if then and there.has(then) else None
    return sorted({now, then} - {None}) if ours != theirs else []


def _pair(here: Predictions, there: Predictions, shared: set[str], ids: list[str]) -> dict[str, Any]:
    ours = here.frame[here.frame["id"].isin(shared)]
    theirs = there.frame.set_index("id", drop=False).loc[ours["id"]].assign(label=ours["label"].to_numpy())
    place = {label: number for number, label in enumerate(there.labels)}
    answer = dict(zip(theirs["id"], theirs["predicted"], strict=True))
    predicted = [place.get(answer[id_], -1) if id_ in answer else _NOT_SHARED for id_ in ids]
    return compare(theirs, ours) | {
        "accuracy": float(ours["right"].mean()),
        "accuracy_there": float((theirs["label"] == theirs["predicted"]).mean()),
        "changed": int((theirs["predicted"].fillna("").to_numpy() != ours["predicted"].fillna("").to_numpy()).sum()),
        "predicted": predicted,
    }


def _relabelled(here: Predictions, there: Predictions, shared: set[str]) -> int:
    label = dict(zip(there.frame["id"], there.frame["label"], strict=True))
    pairs = zip(here.frame["id"], here.frame["label"], strict=True)
    return sum(id_ in shared and label[id_] != ours for id_, ours in pairs)


def _shared_ids(there: Revision, lock: dict, their_lock: dict, theirs: Predictions) -> set[str]:
    """The ids of the test samples whose pictures are the same at the revision.

    Reads the pictures only if the files differ: equal ids do not say that the pictures are equal.
    """
    ids, _ = dataset.ids_and_labels(TEST)
    if _md5(lock) is not None and _md5(lock) == _md5(their_lock):
        return set(ids)
    if not {*ids} & {*theirs.frame["id"]}:
        return set()
    with Path(TEST).open("rb") as file:
        ours = _hashes(file)
    with there.open(TEST) as file:
        return {id_ for id_, picture in _hashes(file).items() if ours.get(id_) == picture}


def _hashes(file: BinaryIO) -> dict[str, bytes]:
    """The hash of every picture of a split, by id."""
    import pyarrow.parquet as pq

    found = {}
    for batch in pq.ParquetFile(file).iter_batches(16, columns=["id", "image"]):
        for row in batch.to_pylist():
            found[row["id"]] = hashlib.blake2b(row["image"]["bytes"], digest_size=16).digest()
    return found


def _lock_of(there: Revision) -> dict[str, Any]:
    try:
        return there.read_mapping("dvc.lock")
    except InputError:
        return {}


def _stale_of(there: Revision, lock: dict[str, Any]) -> set[str]:
    """The stages that the dvc.lock of a revision has with another model or task than its params.yaml."""
    params = there.read_mapping("params.yaml")
    return run.stale(lock, params.get("model"), params.get("task"))


def _decisions_of(there: Revision) -> str | None:
    task = there.read_mapping("params.yaml").get("task")
    return there.read_mapping(f"configs/tasks/{task}.yaml").get("decisions")


def _md5(lock: dict[str, Any]) -> str | None:
    """The hash of the test split that a dvc.lock has."""
    outs = lock.get("stages", {}).get("prepare", {}).get("outs", [])
    return next((out.get("md5") for out in outs if out["path"] == TEST), None)
