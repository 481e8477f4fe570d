"""compare: what correcting the label prior and what fine-tuning gain, and all accuracies in one chart."""

from pathlib import Path

from vlm.config.errors import reported
from vlm.data import json_files, predictions
from vlm.evaluation.intervals import wilson
from vlm.measuring import Predictions, charts
from vlm.measuring.comparison import compare

BASELINES = {"majority": "majority\nclass", "probe_nearest": "nearest\nneighbours", "probe_linear": "linear\nprobe"}
# By name: what details.json and the stage's line call them
PROBES = {
    "probe_nearest": ("over_nearest", "nearest neighbours on frozen vision features"),
    "probe_linear": ("over_probe", "a linear probe on frozen vision features"),
}
PLAIN = "plain"  # structured_eval before its label prior was corrected, if it was
STEPS = {
    "baseline_eval": "raw",
    PLAIN: "structured",
    "structured_eval": "structured,\nprior corrected",
    "final_eval_raw": "fine-tuned,\nraw",
    "final_eval": "fine-tuned,\nstructured",
    "edge_eval": "exported,\nllama.cpp",
}
_SIGNIFICANT = 0.05  # a p-value from which on two models cannot be told apart


def main() -> None:
    answers = {name: Predictions.load(name) for name in [*BASELINES, *STEPS] if name != PLAIN}
    titles = BASELINES | STEPS
    answers[PLAIN] = answers["structured_eval"].plain()
    if answers[PLAIN] is answers["structured_eval"]:
        del answers[PLAIN]
        titles["structured_eval"] = STEPS[PLAIN]
    # Probes of a model that gives no vision features, and the export of a model that llama.cpp does not run
    for name in (*PROBES, "edge_eval"):
        if "unavailable" in json_files.read(predictions.notes_path(name)):
            del answers[name]
    found = compare(answers["structured_eval"].frame, answers["final_eval"].frame)
    details = dict(found)
    line = _gain("fine-tuning", found)
    if PLAIN in answers:
        of_prior = compare(answers[PLAIN].frame, answers["structured_eval"].frame)
        details |= {f"prior_{key}": value for key, value in of_prior.items()}
        line = f"{_gain('correcting the label prior', of_prior)}; {line}"
    over = {}
    for name, (prefix, _) in PROBES.items():
        if name not in answers:
            continue
        over[name] = compare(answers[name].frame, answers["final_eval"].frame)
        details |= {f"{prefix}_{key}": value for key, value in over[name].items()}
    if over:
        best = min(over, key=lambda name: over[name]["gain"])
        line = _with_probe(line, PROBES[best][1], over[best])
    json_files.write("metrics/compare.json", {name: found[name] for name in ("gain", "gain_low", "gain_high")})
    json_files.write("plots/compare/details.json", details)
    bars = {name: _bar(titles[name], answers[name]) for name in answers}
    charts.accuracy(
        Path("plots/compare/accuracy.png"),
        [bars[name] for name in STEPS if name in bars],
        [bars[name] for name in BASELINES if name in bars],
    )
    print(f"compare: {line}")


def _gain(step: str, found: dict[str, float | int]) -> str:
    changed = f"loses {_points(_as_loss(found))}" if found["gain"] < 0 else f"gains {_points(found)}"
    return (
        f"{step} {changed}: {found['gained']} gained, {found['lost']} lost, McNemar p {_formatted(found['mcnemar_p'])}"
    )


def _with_probe(line: str, probe: str, over: dict[str, float | int]) -> str:
    """The line about fine-tuning with what it gains over the better probe: first, if that is nothing."""
    test = f"McNemar p {_formatted(over['mcnemar_p'])}"
    if over["mcnemar_p"] >= _SIGNIFICANT:
        return (
            f"the fine-tuned model cannot be told apart from {probe}: a difference of {_points(over)}, {test}; {line}"
        )
    if over["gain"] < 0:
        return f"the fine-tuned model is {_points(_as_loss(over))} worse than {probe}, {test}; {line}"
    return f"{line}; {_points(over)} more than {probe}, {test}"


def _as_loss(found: dict[str, float | int]) -> dict[str, float]:
    return {"gain": -found["gain"], "gain_low": -found["gain_high"], "gain_high": -found["gain_low"]}


def _points(found: dict[str, float | int]) -> str:
    gain, low, high = (100 * found[name] for name in ("gain", "gain_low", "gain_high"))
    return f"{gain:.1f} points ({low:.1f} to {high:.1f})"


def _bar(title: str, answers: Predictions) -> charts.Bar:
    right, n = int(answers.frame["right"].sum()), len(answers.frame)
    return title, right / n, *wilson(right, n)


def _formatted(p: float) -> str:
    """A p-value with two significant digits; the smallest ones underflow to 0, which is not a valid p-value."""
    return "< 1e-300" if p < 1e-300 else f"= {p:.2g}"


if __name__ == "__main__":
    with reported():
        main()
