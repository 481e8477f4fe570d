"""audit: ranks suspicious samples of all splits: probable label errors, near duplicates, pictures that show little."""

import sys
from pathlib import Path

from vlm.audit.audit import audit
from vlm.compute.progress import ProgressBar
from vlm.config import load_params
from vlm.config.errors import reported


def main() -> None:
    with ProgressBar() as emit:
        found = audit(load_params().task, emit)
    found.write(Path("plots/audit"), Path("metrics/audit.json"))
    for line in found.unseen:
        print(f"not checked: {line}", file=sys.stderr)
    print(f"audit: {found.summary()}" + ("; see plots/audit/suspects.csv" if found.suspects else ""))


if __name__ == "__main__":
    with reported():
        main()
