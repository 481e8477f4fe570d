"""structured_eval: the model as it comes, able to answer only with the task's labels."""

from vlm import compute, evaluation, metrics, pinned, plots
from vlm.errors import reported
from vlm.params import load_params

STAGE = "structured_eval"


def main() -> None:
    params = pinned.resolved(load_params())
    job = evaluation.Evaluation.structured(params)
    with compute.run(job, params.compute, params.modal) as result:
        predictions, counted = evaluation.save(result, STAGE)
        values = metrics.structured(predictions, result / "calibration.parquet", params.task.labels)
        metrics.write(f"metrics/{STAGE}.json", values | counted)
        plots.write(f"plots/{STAGE}", predictions, params.task.labels, job.data)
        plots.confidence(f"plots/{STAGE}", predictions)


if __name__ == "__main__":
    with reported():
        main()
