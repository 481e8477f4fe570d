"""Another revision or experiment beside this one: which answers changed, and whether that is more than chance."""

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from vlm.config.errors import InputError
from vlm.data import dataset
from vlm.measuring.answers import Predictions
from vlm.measuring.comparison import compare
from vlm.measuring.revisions import Revision
from vlm.report import run
from vlm.report.answers import TEST, TITLES

_NOT_SHARED = -2


def compare_with(revision: str, here: Mapping[str, Predictions], stale: Collection[str] = ()) -> dict[str, Any]:
    """Compares the predictions `here` with those of the same names at `revision`, on the test samples of both.

    A sample is of both if its id and its picture are, and if all predictions there answer it. It counts as right if the
    answer is its label here, so that a label that was corrected in between changes no comparison; `relabelled` is the
    number of such samples. In `models`, `predicted` has a place among `labels` per test sample, -1 for no label and -2
    for a sample that is not shared.
    The parameters of stages in `stale` are not compared. Raises InputError if there is nothing to compare.
    """
    there, lock = Revision(revision), run.lock()
    theirs: dict[str, Predictions] = {}
    reasons = []
    for name in here:
        try:
            theirs[name] = Predictions.load(name, there)
        except InputError as error:
            reasons.append(error)
    if not theirs:
        raise InputError(f"--against: {reasons[0]}")
    their_lock = _lock_of(there)
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
        "missing": [TITLES[name] for name in here if name not in theirs],
        "changed": run.changes(run.parameters(lock, stale), run.parameters(their_lock)),
        "models": {name: _pair(here[name], theirs[name], shared, list(ids)) for name in theirs},
    }


def _pair(here: Predictions, there: Predictions, shared: set[str], ids: list[str]) -> dict[str, Any]:
    ours = here.frame[here.frame["id"].isin(shared)]
    theirs = there.frame.set_index("id", drop=False).loc[ours["id"]].assign(label=ours["label"].to_numpy())
    place = {label: number for number, label in enumerate(there.labels)}
    answer = dict(zip(theirs["id"], theirs["predicted"], strict=True))
    predicted = [place.get(answer[id_], -1) if id_ in answer else _NOT_SHARED for id_ in ids]
    return compare(theirs, ours) | {
        "title": TITLES[here.name],
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
        return there.read_yaml("dvc.lock") or {}
    except InputError:
        return {}


def _md5(lock: dict[str, Any]) -> str | None:
    """The hash of the test split that a dvc.lock has."""
    outs = lock.get("stages", {}).get("prepare", {}).get("outs", [])
    return next((out.get("md5") for out in outs if out["path"] == TEST), None)
