"""Command line: `python -m vlm COMMAND`, or `vlm COMMAND` if the project is installed."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from vlm.config.errors import reported

# command -> module in vlm/commands, and what it does. A module is imported only when its command runs.
COMMANDS = {
    "plan": ("plan", "what `dvc repro` would run, where, for how long and at what cost; runs nothing"),
    "classify": ("classify", "labels and probabilities for your own pictures"),
    "prompt-search": (
        "prompt_search",
        "search for a better wording of the prompt, on validation; measure it once on test",
    ),
    "learning-curve": ("learning_curve", "what to do with N labelled pictures: accuracy of six methods against N"),
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
    with _until_nobody_reads(), reported():
        command = import_module(f"vlm.commands.{module}")
        command_parser = argparse.ArgumentParser(
            prog=f"python -m vlm {arguments.command}", description=f"{text[0].upper()}{text[1:]}."
        )
        command.add_arguments(command_parser)
        sys.exit(command.main(command_parser.parse_args(arguments.options)))


@contextmanager
def _until_nobody_reads() -> Iterator[None]:
    """Ends without a word, with the exit code 141 of SIGPIPE, when what reads the output has ended, as in `| head`."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more when it ends, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


if __name__ == "__main__":
    main()
