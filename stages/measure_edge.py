"""measure_edge: what exporting changes: labels, probabilities and accuracy against final_eval; plots/edge/."""

from vlm.config.errors import reported
from vlm.data import json_files
from vlm.measuring import edge


def main() -> None:
    table = edge.measure()
    if table.empty:
        print("measure_edge: nothing to measure; nothing was exported")
        return
    shipped = table.iloc[0]
    agreement = json_files.read("plots/edge/details.json")["greedy_agreement"]
    if len(table) > 1:
        shown = ["types", "megabytes", "accuracy", "changed", "gained", "lost", "largest_change"]
        print(table[shown].round(4).to_string(index=False))
    print(
        f"measure_edge: {shipped['types']}, {shipped['megabytes']:.3g} MB: {100 * shipped['accuracy']:.1f} % of "
        f"{shipped['samples']} right ({100 * shipped['low']:.1f} to {100 * shipped['high']:.1f}); "
        f"{shipped['changed']} labels differ from final_eval's ({shipped['gained']} gained, {shipped['lost']} lost); "
        f"greedy decoding finds the most probable label for {100 * agreement:.1f} %"
    )


if __name__ == "__main__":
    with reported():
        main()
