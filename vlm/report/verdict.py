"""What the numbers say, in sentences, the most important one first."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlm.measuring.comparison import compare
from vlm.report.answers import PLAIN

if TYPE_CHECKING:
    from vlm.measuring.answers import Predictions


_PROBES = {"probe_linear": "a linear probe", "probe_nearest": "a nearest-neighbour classifier"}
# What was done, the predictions without and with it, and what the former are called
_STEPS = (
    ("Correcting the label prior", PLAIN, "structured_eval", "the model's own probabilities"),
    ("Fine-tuning", "structured_eval", "final_eval", "the base model's structured answers"),
)
_SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Sentence:
    text: str
    warning: bool = False  # the page sets it apart
    first: bool = False


def sentences(found: "Mapping[str, Predictions]") -> list[Sentence]:
    """Compares the best model of the pipeline with the base model and with the baselines.

    If the model is not better than a probe of the frozen vision features beyond doubt, that comes first, as a warning.
    Two models can be told apart if McNemar's p is below 0.05.
    """
    best = next((name for name in ("final_eval", "final_eval_raw", "structured_eval") if name in found), None)
    if best is None:
        return []
    said = [_gain(*step, found) for step in _STEPS if {step[1], step[2]} <= found.keys()]
    probes = sorted((name for name in _PROBES if name in found), key=lambda name: -found[name].frame["right"].mean())
    said += [_against_probe(found, best, probe) for probe in probes]
    said += [_majority(found["majority"])] if "majority" in found else []
    return sorted(said, key=lambda sentence: not sentence.first)


def points(difference: float) -> str:
    return f"{100 * abs(difference):.1f} points"


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}\u00a0%"


def signed(difference: float) -> str:
    """A difference of accuracies in points with its sign, which 0.0 has not."""
    shown = f"{100 * difference:+.1f}".replace("-", "−")
    return "0.0" if shown in ("+0.0", "−0.0") else shown


def test_of(result: Mapping[str, float | int]) -> str:
    """The interval and the test of a comparison, for people who read such things."""
    if same_samples(result):
        return "both are right about the same samples"  # resampling these cannot say how sure the difference of 0 is
    p = result["mcnemar_p"]
    shown = "< 1e-300" if p < 1e-300 else f"= {p:.2g}"  # the smallest values underflow to 0, which is no p-value
    low, high = signed(result["gain_low"]), signed(result["gain_high"])
    return f"95 % interval {low} to {high}, paired bootstrap; McNemar's exact p {shown}"


def same_samples(result: Mapping[str, float | int]) -> bool:
    """Whether both models of a comparison are right about the same samples."""
    return result["gained"] == result["lost"] == 0


def _gain(step: str, before: str, after: str, called: str, found: "Mapping[str, Predictions]") -> Sentence:
    result = compare(found[before].frame, found[after].frame)
    if before == "structured_eval" and PLAIN in found:
        called += " with the label prior corrected"
    if same_samples(result):
        return Sentence(f"{step} makes no difference: {called} are right about the same samples.", warning=True)
    over = "over" if result["gain"] > 0 else "compared with"
    over += f" {called} ({test_of(result)}); "
    counts = f"it fixes {result['gained']} samples and breaks {result['lost']}."
    if result["mcnemar_p"] >= _SIGNIFICANT:
        difference = f"{signed(result['gain'])} points"
        text = f"{step} makes no difference that could be told from chance: {difference} {over}{counts}"
        return Sentence(text, warning=True)
    verb = "gains" if result["gain"] > 0 else "loses"
    return Sentence(f"{step} {verb} {points(result['gain'])} {over}{counts}", warning=result["gain"] < 0)


def _against_probe(found: "Mapping[str, Predictions]", best: str, name: str) -> Sentence:
    probe, model = found[name].frame, found[best].frame
    subject, advantage = (
        ("the fine-tuned model", "needs no fine-tuning")
        if best.startswith("final")
        else ("the base model", "learns from the training split")
    )
    rival = f"{_PROBES[name]} on the frozen vision tower's features"
    result = compare(probe, model)
    ours, theirs = percent(model["right"].mean()), percent(probe["right"].mean())
    if result["mcnemar_p"] >= _SIGNIFICANT:
        start = f"{_capital(subject)} cannot be told apart from {rival}, which {advantage}"
        return Sentence(f"{start}: {ours} against {theirs} ({test_of(result)}).", warning=True, first=True)
    if result["gain"] < 0:
        start = f"{_capital(rival)}, which {advantage}, beats {subject} by {points(result['gain'])}"
        test = test_of(compare(model, probe))
        return Sentence(f"{start}: {theirs} against {ours} ({test}).", warning=True, first=True)
    return Sentence(f"{_capital(subject)} beats {rival} by {points(result['gain'])} ({test_of(result)}).")


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _majority(majority: "Predictions") -> Sentence:
    [(label, _)] = Counter(majority.frame["predicted"].dropna()).most_common(1)
    accuracy = percent(majority.frame["right"].mean())
    return Sentence(f"Always answering {label}, the most frequent label of the training split, is right in {accuracy}.")
