"""compare: how much accuracy fine-tuning gains over the base model, and the accuracies of all stages in one chart."""

from pathlib import Path

from vlm.config.errors import reported
from vlm.data import json_files, predictions
from vlm.measuring import charts
from vlm.measuring.comparison import compare

STEPS = {
    "baseline_eval": "raw",
    "structured_eval": "structured",
    "final_eval_raw": "fine-tuned,\nraw",
    "final_eval": "fine-tuned,\nstructured",
}


def main() -> None:
    found = compare(predictions.read("structured_eval"), predictions.read("final_eval"))
    json_files.write("metrics/compare.json", {name: found[name] for name in ("gain", "gain_low", "gain_high")})
    json_files.write("plots/compare/details.json", found)
    measured = {name: json_files.read(f"metrics/{name}.json") for name in STEPS}
    rows = [(STEPS[name], values["accuracy"], values["low"], values["high"]) for name, values in measured.items()]
    charts.accuracy(Path("plots/compare/accuracy.png"), rows)
    print(
        f"compare: fine-tuning gains {100 * found['gain']:.1f} points ({100 * found['gain_low']:.1f} to "
        f"{100 * found['gain_high']:.1f}): {found['gained']} gained, {found['lost']} lost, "
        f"McNemar p {_formatted(found['mcnemar_p'])}"
    )


def _formatted(p: float) -> str:
    """A p-value with two significant digits. The smallest ones are 0 in floating point, which no p-value is."""
    return "< 1e-300" if p < 1e-300 else f"= {p:.2g}"


if __name__ == "__main__":
    with reported():
        main()
