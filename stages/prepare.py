"""prepare: writes the task's pictures, from any source, to data/{train,validation,test}.parquet."""

import sys
import time
from pathlib import Path

from vlm.compute.local import end_with_dvc
from vlm.compute.progress import ProgressBar
from vlm.config import Params, load_params, pins
from vlm.config.errors import reported
from vlm.data import json_files
from vlm.sources import preparation
from vlm.sources.report import write_skipped


def main() -> None:
    params = load_params()
    end_with_dvc()
    _warn_about_tiny(params)
    started = time.perf_counter()
    with ProgressBar() as emit:
        report = preparation.prepare(params.task, params.prepare, params.seed, Path("data"), emit)
    seconds = time.perf_counter() - started

    json_files.write("metrics/prepare.json", {"test_changed": report.test_changed})
    json_files.write("plots/prepare/details.json", report.details())
    write_skipped(Path("plots/prepare/skipped.csv"), report)
    runtime = {
        "samples": report.total,
        "seconds": round(seconds, 2),
        "samples_per_second": round(report.total / seconds, 2),
    }
    if params.task.source.hub is not None:
        runtime["source_commit"] = pins.verify_source(params.task)
    json_files.write("metrics/runtime/prepare.json", runtime)
    for warning in [*params.task.doubts(), *report.warnings()]:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"prepare: {report.summary()}" + ("; see plots/prepare/skipped.csv" if report.skipped else ""))


def _warn_about_tiny(params: Params) -> None:
    if params.model.name == "tiny" and params.task.source.badges is None:
        print(
            "warning: params.yaml: model: 'tiny' is a demonstration for car_badges and knows nothing about other "
            "pictures; use a real model, e.g. `-S model=450M`",
            file=sys.stderr,
        )


if __name__ == "__main__":
    with reported():
        main()
