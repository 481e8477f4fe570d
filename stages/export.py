"""export: the fine-tuned classifier as files for llama.cpp, in models/edge/; those of export.sweep are in it, too."""

import time
from pathlib import Path

from vlm.compute.progress import ProgressBar
from vlm.config import load_params, pins
from vlm.config.errors import reported
from vlm.edge import export
from vlm.edge.classifier import NotExportable
from vlm.evaluation import VALIDATION
from vlm.models import runtime

RUNTIME = Path("metrics/runtime/export.json")


def main() -> None:
    params = pins.resolved(load_params())
    knobs, adapter = params.export, params.final_eval.folder
    started = time.perf_counter()
    try:
        export.require_exportable(params)
        with ProgressBar() as emit:
            types, offsets = (knobs.text, knobs.vision), export.prior_offsets(params)
            found = export.export(params, adapter, VALIDATION, export.FOLDER, types, offsets, knobs.swept, emit)
    except NotExportable as error:  # the stages that follow have nothing to measure, and all others go on
        export.write_unavailable(export.FOLDER, str(error))
        runtime.write(RUNTIME, {"samples": 0, "seconds": 0.0})
        print(f"export: nothing exported: {error}")
        return
    runtime.write(RUNTIME, {"seconds": round(time.perf_counter() - started, 2)})
    print(f"export: {export.FOLDER}, {found.summary}")


if __name__ == "__main__":
    with reported():
        main()
