"""final_eval: the fine-tuned model, constrained and free, against what came before."""

import pandas as pd

from vlm import compute, evaluation, metrics, pinned, plots
from vlm.errors import reported
from vlm.params import load_params

STAGE = "final_eval"
ADAPTERS = {"best": "models/adapter", "last": "models/adapter_last"}


def main() -> None:
    params = pinned.resolved(load_params())
    labels = params.task.labels
    adapter = ADAPTERS[params.final_eval.adapter]
    raw_job = evaluation.Evaluation.raw(params, adapter=adapter)
    job = evaluation.Evaluation.structured(params, adapter=adapter)
    with (
        compute.run(raw_job, params.compute, params.modal) as raw_result,
        compute.run(job, params.compute, params.modal) as result,
    ):
        raw_predictions, _ = evaluation.save(raw_result, f"{STAGE}_raw")
        raw = metrics.classification(raw_predictions, labels)
        predictions, counted = evaluation.save(result, STAGE)
        values = metrics.structured(predictions, result / "calibration.parquet", labels) | counted
        baseline = pd.read_parquet("predictions/baseline_eval.parquet")
        structured = pd.read_parquet("predictions/structured_eval.parquet")
        metrics.write(
            f"metrics/{STAGE}.json",
            values
            | {f"raw_{name}": raw[name] for name in ("accuracy", "accuracy_low", "accuracy_high", "valid_rate")}
            | metrics.compare(structured, predictions),
        )
        plots.write(f"plots/{STAGE}", predictions, labels, job.data)
        plots.confidence(f"plots/{STAGE}", predictions)
        steps = {
            "raw": metrics.classification(baseline, labels),
            "structured": metrics.classification(structured, labels),
            "fine-tuned,\nraw": raw,
            "fine-tuned,\nstructured": values,
        }
        rows = [(name, m["accuracy"], m["accuracy_low"], m["accuracy_high"]) for name, m in steps.items()]
        plots.stages(f"plots/{STAGE}/accuracy.png", rows)


if __name__ == "__main__":
    with reported():
        main()
