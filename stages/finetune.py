"""finetune: a LoRA adapter, trained on the task's own prompt and answers."""

import json
import shutil
from pathlib import Path

from vlm import compute, metrics, pinned
from vlm.errors import reported
from vlm.finetuning import FineTuning
from vlm.params import load_params

STAGE = "finetune"


def main() -> None:
    params = pinned.resolved(load_params())
    job = FineTuning(
        task=params.task,
        model=params.model,
        image=params.image,
        finetune=params.finetune,
        seed=params.seed,
        train="data/train.parquet",
        validation="data/validation.parquet",
    )
    with compute.run(job, params.compute, params.modal, f"plots/{STAGE}", params.finetune.track_with) as result:
        for name in ("adapter", "last"):
            target = Path("models", "adapter" if name == "adapter" else "adapter_last")
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(result / name, target)
        Path("plots", STAGE).mkdir(parents=True, exist_ok=True)
        for name in ("modules.csv", "checkpoints.csv"):
            shutil.copyfile(result / name, f"plots/{STAGE}/{name}")
        Path("metrics/runtime").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(result / "runtime.json", f"metrics/runtime/{STAGE}.json")
        metrics.write(f"metrics/{STAGE}.json", json.loads((result / "metrics.json").read_text()))


if __name__ == "__main__":
    with reported():
        main()
