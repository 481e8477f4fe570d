"""`python -m vlm report`: one page with every sample, confusion and suspicious label, which opens without a network.

Reads the predictions that exist; it need not be all of them. `--against REV` also shows what changed since another
revision or experiment.
"""

import argparse
import re
from pathlib import Path

from vlm.compute.progress import ProgressBar
from vlm.config.params import load_params
from vlm.report import page


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--against", metavar="REV", help="compare with another commit, branch, tag or experiment of this repository"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="where to write it (default: reports, with --against reports-REV)",
    )


def main(arguments: argparse.Namespace) -> None:
    folder = arguments.output or default_folder(arguments.against)
    with ProgressBar() as emit:
        written = page.write(folder, load_params(), emit, arguments.against)
    print(f"{folder / 'index.html'}: {written}; open it in a browser")


def default_folder(against: str | None) -> Path:
    """reports, or for a comparison reports-REV, with a dash for characters that file systems dislike."""
    if against is None:
        return Path("reports")
    return Path("reports-" + re.sub(r"[^\w.]+", "-", against).strip("-"))
