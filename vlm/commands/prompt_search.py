"""`python -m vlm prompt-search`: searches for a better wording of the task's prompt, on the validation split."""

import argparse
from pathlib import Path

from vlm.config import pins
from vlm.config.errors import InputError
from vlm.config.params import load_params
from vlm.config.prompts import candidates_file
from vlm.measuring.prompt_search import lines, measure
from vlm.prompting.search import search
from vlm.prompting.table import FOLDER


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--candidates",
        type=Path,
        metavar="FILE",
        help="the wordings to combine (default: params.yaml's prompt_search.candidates, a file in configs/prompts)",
    )
    parser.add_argument(
        "--out", metavar="NAME", help="the winner is written as configs/tasks/NAME.yaml (default: TASK_searched)"
    )
    parser.add_argument("--sample", type=int, metavar="N", help="candidates at most (default: params.yaml's)")
    parser.add_argument(
        "--passes", type=float, metavar="N", help="cost, in passes over validation (default: params.yaml's)"
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="of the sample of candidates and the order of the samples (default: seed)"
    )
    parser.add_argument(
        "--propose",
        action="store_true",
        help="first ask the language model that the file names for more questions, and add them to the file",
    )


def main(arguments: argparse.Namespace) -> None:
    params = pins.resolved(load_params())
    for option, least in (("sample", 2), ("passes", 1), ("seed", 0)):
        value = getattr(arguments, option)
        if value is not None and not value >= least:
            raise InputError(f"--{option}: {value:g}: should be at least {least}")
    chosen = {key: getattr(arguments, key) for key in ("sample", "passes") if getattr(arguments, key) is not None}
    changed = {"prompt_search": params.prompt_search.model_copy(update=chosen)}
    if arguments.seed is not None:
        changed["seed"] = arguments.seed
    params = params.model_copy(update=changed)
    file = arguments.candidates or candidates_file(params.prompt_search.candidates, params.task)
    if arguments.propose:
        from vlm.prompting import proposing

        print(proposing.add(file, params.task, params.seed))
    print(f"prompt-search: {search(params, file, arguments.out)}")
    for line in lines(measure(Path(FOLDER))):
        print(f"prompt-search: {line}")
