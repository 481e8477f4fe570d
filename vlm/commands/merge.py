"""`python -m vlm merge models/merged`: writes a fine-tuned model's merged weights, for servers without adapter support.

The merged model is loaded again and its posterior is compared with that of the base model with the adapter. Check the
base model's license before publishing merged weights.
"""

import argparse
from pathlib import Path

from vlm import evaluation
from vlm.config.errors import InputError
from vlm.config.params import load_params
from vlm.edge import merging
from vlm.models import loading


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "output", type=Path, metavar="FOLDER", help="a new folder for the merged model, e.g. models/merged"
    )
    parser.add_argument(
        "--adapter",
        metavar="FOLDER",
        help="the fine-tuned adapter (default: params.yaml's final_eval.adapter)",
    )


def main(arguments: argparse.Namespace) -> None:
    params = load_params()
    adapter = arguments.adapter or params.final_eval.folder
    if loading.is_whole_model(adapter):
        raise InputError(f"{adapter}: is already a whole model, so there is nothing to merge; copy the folder")
    _, difference = merging.merge(params, adapter, arguments.output, merging.samples(evaluation.VALIDATION))
    print(f"{arguments.output}: merged; no probability differs from the adapter's by more than {difference:.1g}")
