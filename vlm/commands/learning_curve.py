"""`python -m vlm learning-curve`: what to do with N labelled pictures, as a table and a chart.

Measures six methods on the test split, for growing numbers of labelled pictures: see vlm/commands/labelled_pictures.py.
What is finished is kept in the user's cache directory: a killed run continues, and another one with more sizes or seeds
measures only those.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

from vlm.commands.labelled_pictures import FEWEST, METHODS, Point, measured
from vlm.config import load_params, pins
from vlm.config.errors import InputError
from vlm.data import dataset
from vlm.evaluation import TEST, TRAIN, VALIDATION
from vlm.evaluation.intervals import wilson
from vlm.measuring import charts

SIZES = (50, 100, 200, 400, 800, 1600)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    listed = " ".join(map(str, SIZES))
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        metavar="N",
        help=f"numbers of labelled pictures (default: {listed}, as far as there are so many); 0 always is, too",
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="draws of each size (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("plots/learning_curve"), metavar="FOLDER", help="default: %(default)s"
    )


def main(arguments: argparse.Namespace) -> None:
    if arguments.seeds < 1:
        raise InputError(f"learning-curve: --seeds: {arguments.seeds}: should be at least 1")
    params = pins.resolved(load_params())
    sizes = chosen_sizes(arguments.sizes, dataset.count(TRAIN) + dataset.count(VALIDATION))
    tested = dataset.count(TEST)
    points = list(measured(params, sizes, arguments.seeds))
    curves = {name: _curve(found, tested) for name in METHODS if (found := [p for p in points if p.method == name])}
    arguments.out.mkdir(parents=True, exist_ok=True)
    _write(arguments.out / "accuracy.csv", points, tested)
    charts.learning_curve(arguments.out / "accuracy.png", curves)
    print(_table(curves, sizes))
    print(f"learning-curve: {arguments.out / 'accuracy.png'}, and with intervals {arguments.out / 'accuracy.csv'}")


def chosen_sizes(wanted: Sequence[int] | None, labelled: int) -> list[int]:
    """The numbers of labelled pictures to measure with, from 0 up. Raises InputError for what cannot be drawn."""
    if wanted is None:
        return [0, *(size for size in SIZES if size <= labelled)]
    for size in wanted:
        if size > labelled:
            raise InputError(
                f"learning-curve: --sizes: {size}: there are {labelled} labelled pictures in {TRAIN} and {VALIDATION}; "
                "leave it out, or raise prepare.train in params.yaml"
            )
        if size and size < FEWEST:
            raise InputError(f"learning-curve: --sizes: {size}: should be 0, or at least {FEWEST}")
    return sorted({0, *wanted})


def _curve(points: Sequence[Point], tested: int) -> list[charts.Labelled]:
    """For each number of labels the accuracy with every seed, and the interval of their mean, by number of labels."""
    found = []
    for labels in sorted({point.labels for point in points}):
        right = [point.right for point in points if point.labels == labels]
        # As if one classifier had answered: other test samples move all seeds together.
        interval = wilson(round(sum(right) / len(right)), tested)
        found.append(charts.Labelled(labels, [count / tested for count in right], *interval))
    return found


def _write(path: Path, points: Sequence[Point], tested: int) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["method", "labels", "seed", "samples", "accuracy", "low", "high"])
        for method in METHODS:
            for point in sorted((p for p in points if p.method == method), key=lambda p: (p.labels, p.seed)):
                values = [point.right / tested, *wilson(point.right, tested)]
                writer.writerow([method, point.labels, point.seed, tested, *(f"{value:.6g}" for value in values)])


def _table(curves: dict[str, list[charts.Labelled]], sizes: Sequence[int]) -> str:
    """The mean accuracies: a line for each method, a column for each number of labelled pictures."""
    width = max(map(len, ["labelled pictures", *curves]))
    lines = [f"{'labelled pictures':{width}}" + "".join(f"{size:>9}" for size in sizes)]
    for name, curve in curves.items():
        means = {point.labels: f"{100 * point.mean:.1f} %" for point in curve}
        lines.append(f"{name:{width}}" + "".join(f"{means.get(size, ''):>9}" for size in sizes))
    return "\n".join(line.rstrip() for line in lines)
