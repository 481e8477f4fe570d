"""export: the fine-tuned classifier as files for llama.cpp, in models/edge/; those of export.sweep are in it, too."""

from vlm.compute.progress import ProgressBar
from vlm.config import load_params, pins
from vlm.config.errors import reported
from vlm.edge import export
from vlm.edge.classifier import NotExportable
from vlm.evaluation import VALIDATION


def main() -> None:
    params = pins.resolved(load_params())
    knobs, adapter = params.export, params.final_eval.folder
    try:
        export.require_exportable(params)
        with ProgressBar() as emit:
            types = (knobs.text, knobs.vision)
            found = export.export(params, adapter, VALIDATION, export.FOLDER, types, knobs.swept, emit)
    except NotExportable as error:  # the stages that follow have nothing to measure, and all others go on
        export.write_unavailable(export.FOLDER, str(error))
        print(f"export: nothing exported: {error}")
        return
    print(f"export: {export.FOLDER}, {found.summary}")


if __name__ == "__main__":
    with reported():
        main()
