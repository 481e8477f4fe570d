"""structured_eval: the base model's answers to the test and validation splits, restricted to the task's labels."""

from vlm import compute
from vlm.config import load_params, pins
from vlm.config.errors import reported
from vlm.evaluation import Evaluation


def main() -> None:
    params = pins.resolved(load_params())
    job = Evaluation.of(params, structured=True)
    with compute.run(job, params.compute, params.modal) as result:
        compute.save(
            result,
            {
                "structured.parquet": "predictions/structured_eval/test.parquet",
                "structured.json": "predictions/structured_eval/test.json",
                "structured_validation.parquet": "predictions/structured_eval/validation.parquet",
                "structured_validation.json": "predictions/structured_eval/validation.json",
                "runtime.json": "metrics/runtime/structured_eval.json",
            },
        )
    print(f"structured_eval: {compute.speed('metrics/runtime/structured_eval.json')}")


if __name__ == "__main__":
    with reported():
        main()
