"""edge_eval: the answers of the exported files to the test split, by llama.cpp; and those of export.sweep, if any."""

import shutil
from pathlib import Path

from vlm import compute
from vlm.config import load_params, pins
from vlm.config.errors import reported
from vlm.data import json_files, predictions
from vlm.edge import export
from vlm.edge.answers import EdgeEvaluation
from vlm.evaluation import TEST

ANSWERS, NOTES = "predictions/edge_eval.parquet", "predictions/edge_eval.json"
RUNTIME = "metrics/runtime/edge_eval.json"
SWEEP = Path("predictions/edge_sweep")


def main() -> None:
    params = load_params()
    shutil.rmtree(SWEEP, ignore_errors=True)
    SWEEP.mkdir(parents=True)
    reason = export.unavailable_in(export.FOLDER)
    if reason:
        predictions.write(Path(ANSWERS), params.task, TEST, [], [], rows=[])  # the stage needs its outputs
        json_files.write(NOTES, {"unavailable": reason})
        json_files.write(RUNTIME, {"samples": 0, "seconds": 0.0, "samples_per_second": 0.0})
        print(f"edge_eval: nothing to measure: {reason}")
        return
    params = pins.resolved(params)
    folders = [export.FOLDER, *sorted(path for path in export.SWEEP.iterdir() if path.is_dir())]
    for folder in folders:
        shipped = folder == export.FOLDER
        job = EdgeEvaluation(params.task, params.model, str(folder), TEST, params.export.samples, greedy=shipped)
        with compute.run_on_cpu(job) as result:
            answers, notes, times = (ANSWERS, NOTES, RUNTIME) if shipped else _paths(folder.name)
            compute.save(result, {"edge.parquet": answers, "edge.json": notes, "runtime.json": times})
    print(f"edge_eval: {compute.speed(RUNTIME)} on this CPU; a phone is slower or faster")


def _paths(types: str) -> tuple[str, str, str]:
    """Where the answers, notes and times of a classifier of the sweep go."""
    return f"{SWEEP}/{types}.parquet", f"{SWEEP}/{types}.json", f"{SWEEP}/{types}.runtime.json"


if __name__ == "__main__":
    with reported():
        main()
