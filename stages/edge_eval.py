"""edge_eval: the answers of the exported files to the test split, by llama.cpp; and those of export.sweep, if any."""

from contextlib import ExitStack
from pathlib import Path

from vlm import compute
from vlm.config import load_params, pins
from vlm.config.errors import reported
from vlm.data import json_files, predictions
from vlm.edge import answers, export
from vlm.evaluation import TEST

ANSWERS, NOTES = "predictions/edge_eval/test.parquet", "predictions/edge_eval/test.json"
SWEEP, RUNTIME = Path("predictions/edge_eval/sweep.parquet"), "metrics/runtime/edge_eval.json"


def main() -> None:
    params = load_params()
    reason = export.unavailable_in(export.FOLDER)
    if reason:
        predictions.write(Path(ANSWERS), params.task, TEST, [], [], rows=[])  # the stage needs its outputs
        json_files.write(NOTES, {"unavailable": reason})
        answers.write_sweep(SWEEP, [])
        json_files.write(RUNTIME, {"samples": 0, "seconds": 0.0, "samples_per_second": 0.0})
        print(f"edge_eval: nothing to measure: {reason}")
        return
    params = pins.resolved(params)
    with ExitStack() as stack:  # results stay until all are there
        found = {}
        for folder in (export.FOLDER, *export.swept(export.FOLDER)):
            shipped = folder == export.FOLDER
            job = answers.EdgeEvaluation(params.task, params.model, str(folder), TEST, params.export.samples, shipped)
            found[folder.name] = stack.enter_context(compute.run_on_cpu(job))
        result = found.pop(export.FOLDER.name)
        compute.save(result, {"edge.parquet": ANSWERS, "edge.json": NOTES, "runtime.json": RUNTIME})
        answers.write_sweep(SWEEP, found.values())
        sweep = {types: json_files.read(folder / "runtime.json") for types, folder in found.items()}
    times = json_files.read(RUNTIME)
    json_files.write(RUNTIME, times | ({"sweep": sweep} if sweep else {}))
    speed = f"; {times['median_milliseconds']:.3g} ms for one picture's probabilities" if times["samples"] else ""
    print(f"edge_eval: {compute.speed(RUNTIME)}{speed}, on this machine's CPU")


if __name__ == "__main__":
    with reported():
        main()
