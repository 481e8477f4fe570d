"""prepare: the task's pictures, from wherever they come, as data/{train,validation,test}.parquet."""

import time
from pathlib import Path

from vlm import metrics, pinned, plots, preparation
from vlm.errors import reported
from vlm.params import load_params
from vlm.progress import ProgressBar

STAGE = "prepare"


def main() -> None:
    params = load_params()
    started = time.perf_counter()
    with ProgressBar() as emit:
        report = preparation.prepare(params.task, params.prepare, params.seed, Path("data"), emit)
    seconds = time.perf_counter() - started

    metrics.write(f"metrics/{STAGE}.json", report.metrics())
    runtime = {"seconds": round(seconds, 2), "images_per_second": round(report.total / seconds, 2)}
    if params.task.source.hub is not None:
        runtime["source_commit"] = pinned.verify_source(params.task)
    metrics.write(f"metrics/runtime/{STAGE}.json", runtime)
    plots.class_distribution(f"plots/{STAGE}/class_distribution.csv", report.rows)
    plots.samples(f"plots/{STAGE}/samples.png", "data/train.parquet", params.task.labels)
    preparation.write_skipped(Path(f"plots/{STAGE}/skipped.csv"), report)


if __name__ == "__main__":
    with reported():
        main()
