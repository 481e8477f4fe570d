"""finetune: a LoRA adapter or a whole model, trained on the task's own prompt and answers."""

from vlm import compute
from vlm.config import load_params, pins
from vlm.config.errors import reported
from vlm.data import json_files
from vlm.training import FineTuning


def main() -> None:
    params = pins.resolved(load_params())
    job = FineTuning(
        task=params.task,
        model=params.model,
        image=params.image,
        finetune=params.finetune,
        seed=params.seed,
        train="data/train.parquet",
        validation="data/validation.parquet",
    )
    with compute.run(job, params.compute, params.modal, "plots/finetune", params.finetune.track_with) as result:
        compute.save(
            result,
            {
                "adapter": "models/adapter",
                "last": "models/adapter_last",
                "modules.csv": "plots/finetune/modules.csv",
                "checkpoints.csv": "plots/finetune/checkpoints.csv",
                "metrics.json": "plots/finetune/details.json",
                "runtime.json": "metrics/runtime/finetune.json",
            },
        )
    found = json_files.read("plots/finetune/details.json")
    json_files.write("metrics/finetune.json", {name: found[name] for name in ("eval_loss", "val_accuracy")})
    print(
        f"finetune: best at step {found['best_step']} of {found['steps']}: {100 * found['val_accuracy']:.1f} % of "
        f"{found['val_samples']} validation samples right"
    )


if __name__ == "__main__":
    with reported():
        main()
