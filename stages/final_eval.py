"""final_eval: the fine-tuned model's answers to the test split, raw and structured, and to validation, structured."""

from vlm import compute
from vlm.config import load_params, pins
from vlm.config.errors import reported
from vlm.evaluation import Evaluation


def main() -> None:
    params = pins.resolved(load_params())
    job = Evaluation.of(params, raw=True, structured=True, adapter=params.final_eval.folder)
    with compute.run(job, params.compute, params.modal) as result:
        compute.save(
            result,
            {
                "raw.parquet": "predictions/final_eval_raw/test.parquet",
                "raw.json": "predictions/final_eval_raw/test.json",
                "structured.parquet": "predictions/final_eval/test.parquet",
                "structured.json": "predictions/final_eval/test.json",
                "structured_validation.parquet": "predictions/final_eval/validation.parquet",
                "structured_validation.json": "predictions/final_eval/validation.json",
                "runtime.json": "metrics/runtime/final_eval.json",
            },
        )
    print(f"final_eval: {compute.speed('metrics/runtime/final_eval.json')}")


if __name__ == "__main__":
    with reported():
        main()
