"""measure NAME: the metrics, tables and pictures of predictions/NAME.parquet, in metrics/NAME.json and plots/NAME/."""

import sys

from vlm.config import load_params
from vlm.config.errors import reported
from vlm.measuring.measure import measure


def main(name: str) -> None:
    values = measure(name, load_params().task, "data/test.parquet")
    line = (
        f"{name}: {100 * values['accuracy']:.1f} % of {values['samples']} right "
        f"({100 * values['low']:.1f} to {100 * values['high']:.1f})"
    )
    if "valid" in values:
        line += f"; {100 * values['valid']:.1f} % are a label and nothing else"
    print(line)


if __name__ == "__main__":
    with reported():
        main(sys.argv[1])
