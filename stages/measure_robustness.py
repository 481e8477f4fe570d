"""measure_robustness: how much accuracy both models lose on corrupted pictures; plots/robustness/."""

from vlm.config.errors import reported
from vlm.data import predictions
from vlm.evaluation import TEST
from vlm.measuring import robustness


def main() -> None:
    found = robustness.measure(predictions.read("robustness"), TEST)
    if not found:
        print("measure_robustness: nothing to measure; robustness is switched off")
        return
    lost = [
        f"{name} {100 * of['drop']:.1f} points ({100 * of['drop_low']:.1f} to {100 * of['drop_high']:.1f}; "
        f"{100 * of['clean']:.1f} → {100 * of['corrupted']:.1f} %)"
        for name, of in ((name, found[name]) for name in ("base", "fine-tuned"))
    ]
    print(f"measure_robustness: corruption costs {', '.join(lost)}; plots/robustness/samples.png")


if __name__ == "__main__":
    with reported():
        main()
