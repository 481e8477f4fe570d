"""`python -m vlm audit`: ranks suspicious samples of all splits, with whatever predictions there are.

The same as the stage `audit`, which waits for all predictions; this command also works right after `prepare`.
"""

import argparse
from pathlib import Path

from vlm.audit.audit import Audit, audit
from vlm.compute.progress import ProgressBar
from vlm.config.errors import InputError
from vlm.config.params import load_params

PLOTS, METRICS = Path("plots/audit"), Path("metrics/audit.json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--top", type=int, default=10, metavar="N", help="how many undecided suspects to print (default: 10)"
    )


def main(arguments: argparse.Namespace) -> None:
    if arguments.top < 0:
        raise InputError(f"--top: {arguments.top}: should be at least 0")
    task = load_params().task
    with ProgressBar() as emit:
        found = audit(task, emit)
    found.write(PLOTS, METRICS)
    print(found.summary())
    _print_first(found, arguments.top)
    for line in found.unseen:
        print(f"not checked: {line}")
    if found.suspects:
        print(
            f"all of them: {PLOTS}/suspects.csv; look at the pictures in the report (`python -m vlm report`), "
            "then exclude, relabel or keep each: docs/audit.md"
        )


def _print_first(found: Audit, count: int) -> None:
    first = found.undecided[:count]
    names = [f"{suspect.sample.split}/{suspect.sample.id}" for suspect in first]
    width = max(map(len, names), default=0)
    for rank, (name, suspect) in enumerate(zip(names, first, strict=True), 1):
        print(f"{rank:4}  {name:{width}}  {suspect.kind:14}  {suspect.reason}")
