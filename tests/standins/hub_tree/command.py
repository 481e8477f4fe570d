"""Writes the repositories. The same arguments give the same bytes, and so commits, with the same library versions."""

import argparse
from pathlib import Path

from hub_tree import data_sets
from hub_tree.model import write_model

DATA_SETS = {
    "Paulescu/stanford_cars": data_sets.stanford_cars,
    "microsoft/cats_vs_dogs": data_sets.cats_vs_dogs,
    "Bingsu/Human_Action_Recognition": data_sets.human_actions,
}
MODEL = "LiquidAI/LFM2-VL-450M"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="make_hub_tree.py", description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--images", type=int, default=240, help="of a train split (default: 240); others are smaller")
    parser.add_argument("--light", action="store_true", help="a model with few image tokens and no tiling")
    parser.add_argument("--only", action="append", help="only repositories with this in their name; may be repeated")
    options = parser.parse_args(arguments)

    def wanted(repo: str) -> bool:
        return not options.only or any(part in repo for part in options.only)

    if wanted(MODEL):
        write_model(options.root / "models" / MODEL, options.light)
    for repo, write in DATA_SETS.items():
        if wanted(repo):
            write(options.root / "datasets" / repo, options.images)
