"""export: the fine-tuned classifier as files for llama.cpp, in models/edge/; those of export.sweep are in it, too."""

from vlm.compute.progress import ProgressBar
from vlm.config import load_params, pins
from vlm.config.errors import reported
from vlm.edge import export
from vlm.evaluation import VALIDATION

ADAPTERS = {"best": "models/adapter", "last": "models/adapter_last"}


def main() -> None:
    params = pins.resolved(load_params())
    reason = export.unavailable(params)
    if reason:
        export.write_unavailable(export.FOLDER, reason)
        print(f"export: nothing exported: {reason}")
        return
    adapter, types = ADAPTERS[params.final_eval.adapter], (params.export.text, params.export.vision)
    with ProgressBar() as emit:
        found = export.export(params, adapter, VALIDATION, export.FOLDER, types, params.export.swept, emit)
    print(f"export: {export.FOLDER}, {found.summary}")


if __name__ == "__main__":
    with reported():
        main()
