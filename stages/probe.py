"""probe: honest baselines: majority class, and nearest neighbours and a linear probe on the model's vision features."""

from pathlib import Path

from vlm import compute
from vlm.compute.progress import ProgressBar
from vlm.config import load_params, pins
from vlm.config.errors import reported
from vlm.probing import FeatureExtraction, baselines

FEATURES = Path("predictions/features")


def main() -> None:
    params = pins.resolved(load_params())
    job = FeatureExtraction(task=params.task, model=params.model, image=params.image)
    with compute.run(job, params.compute, params.modal) as result:
        compute.save(
            result,
            {
                "features.parquet": f"{FEATURES}/features.parquet",
                "features.json": f"{FEATURES}/features.json",
                "runtime.json": "metrics/runtime/probe.json",
            },
        )
        with ProgressBar() as emit:
            summary = baselines.write(job.task, job.splits, FEATURES, Path("predictions"), emit)
    print(f"probe: {summary}; {compute.speed('metrics/runtime/probe.json')}")


if __name__ == "__main__":
    with reported():
        main()
