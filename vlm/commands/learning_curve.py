"""`python -m vlm learning-curve`: accuracy against the number of training rows, as a table and a chart.

It reads the experiments that `make learning-curve` has run: those of the current commit, and the commit itself, as long
as they have the commit's code and configs/ and, in all but prepare.train, the settings of ./params.yaml. Runs nothing.
"""

import argparse
import csv
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

from ruamel.yaml import YAML

from vlm.config.errors import InputError
from vlm.config.yaml_files import read_mapping
from vlm.measuring import charts

# What is drawn, and its name in the chart
_CURVES = {"structured_eval": "structured", "probe_linear": "linear probe", "final_eval": "fine-tuned"}
_MEASURED = ("samples", "accuracy", "low", "high")  # keys of details.json
_SAME = ("configs", "stages", "vlm")  # folders in which an experiment must not differ from its commit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path("plots/learning_curve"), metavar="FOLDER", help="default: %(default)s"
    )


def main(arguments: argparse.Namespace) -> None:
    found = runs(read_mapping("params.yaml"))
    if len(found) < 2:
        raise InputError(
            "learning-curve: needs runs with at least two values of prepare.train at this commit, and there "
            f"{'is one' if found else 'are none'}; `make learning-curve` makes them"
        )
    rows = [
        {"train_rows": size, "name": name, "run": run} | {key: details[name][key] for key in _MEASURED}
        for size, (run, details) in found.items()
        for name in _CURVES
        if "unavailable" not in details[name]  # a probe of a model without vision features
    ]
    arguments.out.mkdir(parents=True, exist_ok=True)
    with (arguments.out / "accuracy.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    curves = {
        title: [(row["train_rows"], row["accuracy"], row["low"], row["high"]) for row in rows if row["name"] == name]
        for name, title in _CURVES.items()
        if any(row["name"] == name for row in rows)
    }
    charts.learning_curve(arguments.out / "accuracy.png", curves)
    print("training rows  " + "  ".join(f"{title:>12}" for title in curves))
    for size, *points in zip(found, *curves.values(), strict=True):
        print(f"{size:>13}  " + "  ".join(f"{100 * accuracy:>10.1f} %" for _, accuracy, *_ in points))
    print(f"learning-curve: {arguments.out / 'accuracy.png'}, and with intervals {arguments.out / 'accuracy.csv'}")


def runs(params: dict) -> dict[int, tuple[str, dict[str, dict]]]:
    """The runs of this commit by their number of training rows, fewest first: name, and details.json by prediction.

    A run counts if it has the commit's code and configs/ and the values of `params`, which are those of params.yaml, in
    all but prepare.train. Of several with equally many training rows the newest experiment counts. Raises InputError if
    not all of them have the same test split.
    """
    found, tests = {}, {}
    yaml = YAML(typ="safe", pure=True)  # as read_mapping reads params.yaml
    for name, revision in _revisions():
        text = _git("show", f"{revision}:params.yaml")
        if text is None or _without_size(yaml.load(text)) != _without_size(params):
            continue
        if any(_git("rev-parse", f"{revision}:{folder}") != _git("rev-parse", f"HEAD:{folder}") for folder in _SAME):
            continue
        files = {stage: _git("show", f"{revision}:plots/{stage}/details.json") for stage in ("prepare", *_CURVES)}
        lock = _git("show", f"{revision}:dvc.lock")
        if lock is None or None in files.values():
            continue
        details = {stage: json.loads(file) for stage, file in files.items()}
        outs = yaml.load(lock)["stages"]["prepare"]["outs"]
        (tests[name],) = [out["md5"] for out in outs if out["path"] == "data/test.parquet"]
        found.setdefault(details["prepare"]["train_rows"], (name, details))
    used = {tests[name]: name for name, _ in found.values()}
    if len(used) > 1:
        raise InputError(f"learning-curve: {' and '.join(used.values())} have different test splits; compare others")
    return dict(sorted(found.items()))


def _revisions() -> Iterator[tuple[str, str]]:
    """(name, revision) of this commit's experiments, newest first, and of the commit itself."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        raise InputError("learning-curve: this folder is not in a git repository with a commit")
    commit = commit.strip()
    # Where DVC keeps experiments: refs/exps/<first two digits of the commit>/<the others>/<name>
    folder = f"refs/exps/{commit[:2]}/{commit[2:]}"
    for reference in (_git("for-each-ref", "--sort=-creatordate", "--format=%(refname)", folder) or "").split():
        yield reference.rpartition("/")[2], reference
    yield "HEAD", commit


def _without_size(params: dict) -> dict:
    prepare = {key: value for key, value in params.get("prepare", {}).items() if key != "train"}
    return params | {"prepare": prepare}


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None
