"""baseline_eval: the base model's free-text answers to the test split."""

from vlm import compute
from vlm.config import load_params, pins
from vlm.config.errors import reported
from vlm.evaluation import Evaluation


def main() -> None:
    params = pins.resolved(load_params())
    job = Evaluation.of(params, raw=True)
    with compute.run(job, params.compute, params.modal) as result:
        compute.save(
            result,
            {
                "raw.parquet": "predictions/baseline_eval/test.parquet",
                "raw.json": "predictions/baseline_eval/test.json",
                "runtime.json": "metrics/runtime/baseline_eval.json",
            },
        )
    print(f"baseline_eval: {compute.speed('metrics/runtime/baseline_eval.json')}")


if __name__ == "__main__":
    with reported():
        main()
