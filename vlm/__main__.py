"""Command line: `python -m vlm COMMAND`, or `vlm COMMAND` if the project is installed."""

import argparse
import sys
from importlib import import_module

from vlm.config.errors import reported

# command -> module in vlm/commands, and what it does. A module is imported only when its command runs.
COMMANDS = {
    "plan": ("plan", "what `dvc repro` would run, where, for how long and at what cost; runs nothing"),
    "classify": ("classify", "labels and probabilities for your own pictures"),
    "learning-curve": ("learning_curve", "accuracy against the number of training rows, from experiments"),
    "report": ("report", "one page for a browser: every sample, confusion and suspicious label"),
    "audit": ("audit", "suspicious samples: probable label errors, near duplicates, pictures that show little"),
    "pin": ("pin", "write the commit or hash of a model or data set into its file"),
    "batch-size": ("batch_size", "find the fastest evaluation.batch_size on this device"),
    "export": ("export", "write the fine-tuned classifier as files for llama.cpp, verified against PyTorch"),
    "serve": ("serve", "answer over HTTP with the exported files"),
    "merge": ("merge", "write the fine-tuned model's merged weights"),
}


def main() -> None:
    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        prog="python -m vlm",
        usage="python -m vlm COMMAND [OPTIONS]",
        description="Commands for use with the pipeline, which DVC runs: `dvc repro`, `dvc exp run`.",
        epilog="commands:\n"
        + "\n".join(f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items())
        + "\n\n`python -m vlm COMMAND --help` lists a command's options. All commands read ./params.yaml.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    parser.add_argument("options", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    if len(sys.argv) == 1:
        parser.print_help()
        sys.exit(2)
    arguments = parser.parse_args()
    module, text = COMMANDS[arguments.command]
    with reported():
        command = import_module(f"vlm.commands.{module}")
        command_parser = argparse.ArgumentParser(
            prog=f"python -m vlm {arguments.command}", description=f"{text[0].upper()}{text[1:]}."
        )
        command.add_arguments(command_parser)
        sys.exit(command.main(command_parser.parse_args(arguments.options)))


if __name__ == "__main__":
    main()
