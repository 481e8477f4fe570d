"""baseline_eval: the model as it comes, free to write what it likes."""

from vlm import compute, evaluation, metrics, pinned, plots
from vlm.errors import reported
from vlm.params import load_params

STAGE = "baseline_eval"


def main() -> None:
    params = pinned.resolved(load_params())
    job = evaluation.Evaluation.raw(params)
    with compute.run(job, params.compute, params.modal) as result:
        predictions, counted = evaluation.save(result, STAGE)
        values = metrics.classification(predictions, params.task.labels) | metrics.lenient(predictions, params.task)
        metrics.write(f"metrics/{STAGE}.json", values | counted)
        plots.write(f"plots/{STAGE}", predictions, params.task.labels, job.data)


if __name__ == "__main__":
    with reported():
        main()
