"""`python -m vlm COMMAND`, or `vlm COMMAND` where the project is installed: the commands for people."""

import argparse
import sys
from importlib import import_module

from vlm.config.errors import reported

# command -> its module in vlm/commands, and what it does; modules are imported when their command runs
COMMANDS = {
    "plan": ("plan", "what `dvc repro` would run, where, how long and for how much; runs nothing"),
    "classify": ("classify", "labels and their probabilities for pictures of your own"),
    "pin": ("pin", "write the commit or hash of a model or data set into its file"),
    "batch-size": ("batch_size", "the evaluation.batch_size that is fastest on this device"),
    "merge": ("merge", "write the fine-tuned model's merged weights"),
}


def main() -> None:
    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        prog="python -m vlm",
        usage="python -m vlm COMMAND [OPTIONS]",
        description="Commands around the pipeline. The pipeline itself is run by DVC: `dvc repro`, `dvc exp run`.",
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
    asked = parser.parse_args()
    module, text = COMMANDS[asked.command]
    with reported():
        command = import_module(f"vlm.commands.{module}")
        of_command = argparse.ArgumentParser(
            prog=f"python -m vlm {asked.command}", description=f"{text[0].upper()}{text[1:]}."
        )
        command.add_arguments(of_command)
        sys.exit(command.main(of_command.parse_args(asked.options)))


if __name__ == "__main__":
    main()
