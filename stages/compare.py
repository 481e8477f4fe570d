"""compare: how much accuracy fine-tuning gains over the base model, and the accuracies of all stages in one chart."""

from pathlib import Path

from vlm.config.errors import reported
from vlm.data import json_files, predictions
from vlm.evaluation.intervals import wilson
from vlm.measuring import charts
from vlm.measuring.comparison import compare

STEPS = {
    "baseline_eval": "raw",
    "structured_eval": "structured",
    "final_eval_raw": "fine-tuned,\nraw",
    "final_eval": "fine-tuned,\nstructured",
}


def main() -> None:
    answers = {name: predictions.read(name) for name in STEPS}
    found = compare(answers["structured_eval"], answers["final_eval"])
    json_files.write("metrics/compare.json", {name: found[name] for name in ("gain", "gain_low", "gain_high")})
    json_files.write("plots/compare/details.json", found)
    rows = []
    for name, step in STEPS.items():
        right, n = int((answers[name]["label"] == answers[name]["predicted"]).sum()), len(answers[name])
        rows.append((step, right / n, *wilson(right, n)))
    charts.accuracy(Path("plots/compare/accuracy.png"), rows)
    print(
        f"compare: fine-tuning gains {100 * found['gain']:.1f} points ({100 * found['gain_low']:.1f} to "
        f"{100 * found['gain_high']:.1f}): {found['gained']} gained, {found['lost']} lost, "
        f"McNemar p {_formatted(found['mcnemar_p'])}"
    )


def _formatted(p: float) -> str:
    """A p-value with two significant digits; the smallest ones underflow to 0, which is not a valid p-value."""
    return "< 1e-300" if p < 1e-300 else f"= {p:.2g}"


if __name__ == "__main__":
    with reported():
        main()
