"""`python -m vlm export FOLDER`: the stage export with other types or another adapter, into a folder of your own."""

import argparse
import sys
from pathlib import Path

from vlm import evaluation
from vlm.compute.progress import ProgressBar
from vlm.config import pins
from vlm.config.params import load_params
from vlm.edge import export, quantization


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=Path, metavar="FOLDER", help="a new folder for the files, e.g. models/edge-q8")
    parser.add_argument(
        "--adapter",
        metavar="FOLDER",
        help="the fine-tuned adapter (default: params.yaml's final_eval.adapter)",
    )
    parser.add_argument(
        "--text", choices=quantization.TEXT_TYPES, help="the type of the text model's weights (default: params.yaml's)"
    )
    parser.add_argument(
        "--vision", choices=quantization.VISION_TYPES, help="the type of the vision part's (default: params.yaml's)"
    )


def main(arguments: argparse.Namespace) -> None:
    params = pins.resolved(load_params())
    export.require_exportable(params)
    types = (arguments.text or params.export.text, arguments.vision or params.export.vision)
    adapter = arguments.adapter or params.final_eval.folder
    of_final_eval = Path(adapter) == Path(params.final_eval.folder)
    offsets = export.prior_offsets(params) if of_final_eval else []
    if params.final_eval.prior != "none" and not of_final_eval:
        print(
            f"warning: {adapter}: exported without a correction of the label prior: final_eval estimated that of "
            f"{params.final_eval.folder}",
            file=sys.stderr,
        )
    with ProgressBar() as emit:
        found = export.export(params, adapter, evaluation.VALIDATION, arguments.output, types, offsets, emit=emit)
    print(f"{arguments.output}: {found.summary}")
