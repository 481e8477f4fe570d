"""robustness: both models' structured answers to corrupted test pictures, if robustness.enabled in params.yaml."""

from pathlib import Path

from vlm import compute
from vlm.config import load_params, pins
from vlm.config.errors import reported
from vlm.data import json_files
from vlm.evaluation import TEST
from vlm.robustness import Robustness, answers

ANSWERS, RUNTIME = "predictions/robustness/test.parquet", "metrics/runtime/robustness.json"


def main() -> None:
    params = load_params()
    if not params.robustness.enabled:
        answers.write(Path(ANSWERS), [])  # the stage needs its outputs
        json_files.write(RUNTIME, {"samples": 0, "seconds": 0.0, "samples_per_second": 0.0})
        print("robustness: switched off; `dvc exp run -S robustness.enabled=true` switches it on")
        return
    params = pins.resolved(params)
    job = Robustness(
        task=params.task,
        model=params.model,
        image=params.image,
        batch_size=params.evaluation.batch_size,
        data=TEST,
        adapter=params.final_eval.folder,
        robustness=params.robustness,
    )
    with compute.run(job, params.compute, params.modal) as result:
        compute.save(result, {"answers.parquet": ANSWERS, "runtime.json": RUNTIME})
    print(f"robustness: {compute.speed(RUNTIME)}")


if __name__ == "__main__":
    with reported():
        main()
