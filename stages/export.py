"""export: the fine-tuned classifier as files for llama.cpp, models/edge/; and those of export.sweep, if any."""

from vlm.compute.progress import ProgressBar
from vlm.config import load_params, pins
from vlm.config.errors import reported
from vlm.edge import export
from vlm.evaluation import VALIDATION

ADAPTERS = {"best": "models/adapter", "last": "models/adapter_last"}


def main() -> None:
    params = pins.resolved(load_params())
    export.SWEEP.mkdir(parents=True, exist_ok=True)  # the stage needs its outputs
    reason = export.unavailable(params)
    if reason:
        export.write_unavailable(export.FOLDER, reason)
        print(f"export: nothing exported: {reason}")
        return
    outputs = {export.FOLDER: (params.export.text, params.export.vision)}
    outputs |= {export.SWEEP / f"{text}+{vision}": (text, vision) for text, vision in params.export.swept}
    with ProgressBar() as emit:
        found = export.export(params, ADAPTERS[params.final_eval.adapter], VALIDATION, outputs, emit)
    print(f"export: {export.FOLDER}, {found.summary}")


if __name__ == "__main__":
    with reported():
        main()
