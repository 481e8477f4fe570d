"""measure NAME: the metrics, tables and pictures of predictions/NAME/, in metrics/NAME.json and plots/NAME/."""

import sys

from vlm.config import load_params
from vlm.config.errors import reported
from vlm.measuring.measure import measure

_HARDLY = 0.1  # of the samples: an outlines_agreement below it is worth a warning


def main(name: str) -> None:
    values = measure(name, load_params().task)
    if "unavailable" in values:
        print(f"{name}: nothing to measure: {values['unavailable']}")
        return
    if values.get("outlines_agreement", 1) < _HARDLY:
        print(f"warning: {name}: {_disagreement(values['outlines_agreement'])}", file=sys.stderr)
    line = (
        f"{name}: {100 * values['accuracy']:.1f} % of {values['samples']} right "
        f"({100 * values['low']:.1f} to {100 * values['high']:.1f})"
    )
    if "prior" in values:
        line += f", {100 * values['plain_accuracy']:.1f} % before the label prior was corrected"
    if "bias" in values:
        line += (
            f"; with a bias fitted on {values['calibrated_labels']} labelled validation samples: "
            f"{100 * values['calibrated_accuracy']:.1f} %"
        )
    if "valid" in values:
        line += f"; {100 * values['valid']:.1f} % are a label and nothing else"
    if "thresholds" in values:
        line += f"; {_confident(values['thresholds'][0])}"
    print(line)


def _disagreement(agreement: float) -> str:
    return (
        f"token by token, Outlines finds the most probable label for {100 * agreement:.0f} % of the samples only "
        "(outlines_agreement): the model hardly knows these labels; try other words for them, or fine-tune"
    )


def _confident(found: dict[str, float | None]) -> str:
    """What the lowest target's threshold, chosen on validation, does on test."""
    if found["threshold"] is None:
        return f"no p is high enough for {100 * found['target']:.0f} % on validation"
    if found["accuracy"] is None:
        return f"no answer has p >= {found['threshold']:g}, which gave {100 * found['target']:.0f} % on validation"
    return (
        f"answers with p >= {found['threshold']:g} are {100 * found['accuracy']:.1f} % right "
        f"({100 * found['low']:.1f} to {100 * found['high']:.1f}) and cover {100 * found['coverage']:.0f} %"
    )


if __name__ == "__main__":
    with reported():
        main(sys.argv[1])
