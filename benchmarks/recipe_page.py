"""The results of benchmarks/recipe.py as a page of Markdown."""

from collections.abc import Mapping, Sequence

from benchmarks import reference
from benchmarks.recipe_rows import VARIANTS
from vlm.evaluation.intervals import wilson
from vlm.training import lora

_STRUCTURED = (
    "Structured: the most probable answer. In the last column the label prior is corrected, with no further training. "
    "Rows without it are kept from an earlier run: of params.yaml they depend on LoRA's rank, alpha and dropout and on "
    "the batch size alone, which are the same."
)
_SECOND = "| | raw strict | raw JSON | validation, structured | structured, bare labels |"


def page(done: Sequence[Mapping], labels: int, validation: int) -> str:
    """The page for the results `done` of a task with so many labels and validation photos."""
    size, whats = done[0], {variant.name: variant.what for variant in VARIANTS}
    severities = sorted({row["severity"] for row in done})
    seeds = 1 + max(row["seed"] for row in done)
    names = [name for name in whats if any(row["variant"] == name for row in done)]
    lines = [
        "# What makes fine-tuning better",
        "",
        *(
            "`python -m benchmarks.recipe "
            f"--severity {severity} --rows {size['rows']} --epochs {size['epochs']} --test {size['test']} "
            f"--seeds {seeds} --threads {size['threads']}`" + ("," if severity != severities[-1] else "")
            for severity in severities
        ),
        "wrote this page and recipe.json, which has all of its numbers.",
        "",
        f"The tiny model on car_badges ({labels} makers): {size['rows']} training photos x {size['epochs']} epochs = "
        f"{size['rows'] * size['epochs']:,} samples seen in each row but `best of all`, LoRA rank, alpha, dropout of "
        f"params.yaml, {size['test']} test photos. In parentheses: the 95 % Wilson interval, for a mean as if one "
        "classifier had reached it, because other test photos would move all seeds together. The rows are:",
        "",
        *[f"- **{name}**: {whats[name]}" for name in names],
        "",
        *_about_the_reference(validation),
    ]
    for severity in severities:
        lines += _section(severity, [row for row in done if row["severity"] == severity], names, seeds, size["test"])
    return "\n".join(lines) + "\n"


def _about_the_reference(validation: int) -> list[str]:
    return [
        f"The reference's list of LoRA targets is {', '.join(f'`{name}`' for name in reference.TARGETS)}; this model "
        "has the first four. The reference is trained on bare labels and scored on JSON, as in the tutorial. It runs "
        "here without gradient checkpointing, which changes its time but not its gradients. Its result is its last "
        f"weights; ours is the best checkpoint on {validation} validation photos.",
        "",
        "tiny was pretrained on answers only: every token of the prompt is new to it, and a loss on all tokens is "
        "mostly about memorising the prompt. A model that was pretrained on running text has less to lose. The rows "
        "`prompt-trained` are fair to the reference in this: they start from a tiny that has read the prompt with its "
        "list of labels, with pictures of brands that are not in the task (models/prompt_tiny.py).",
    ]


def _section(severity: float, done: Sequence[Mapping], names: Sequence[str], seeds: int, test: int) -> list[str]:
    found = {name: [row for row in done if row["variant"] == name] for name in names}
    found = {name: rows for name, rows in found.items() if rows}
    lines = ["", f"## Severity {severity}", "", _STRUCTURED]
    head = [*(f"seed {seed}" for seed in range(seeds)), "mean", "mean, label prior corrected"]
    lines += ["", f"| | {' | '.join(head)} |", "| --- |" + " --- |" * len(head)]
    for name, rows in found.items():
        by_seed = {row["seed"]: f"{100 * row['structured']:.1f}" for row in rows}
        cells = [by_seed.get(seed, "") for seed in range(seeds)]
        cells += [f"**{_mean(rows, 'structured', test)}**", _mean(rows, "structured_prior", test)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [*_best_rates(found), "", "Means over seeds, %, and the parameters that are trained:", ""]
    lines += [f"{_SECOND} language | projector | vision |", "| --- |" + " --- |" * 7]
    for name, rows in found.items():
        cells = [_mean(rows, metric) for metric in ("raw_strict", "raw_json", "validation", "structured_bare")]
        cells += [f"{rows[0][part]:,}" for part in lora.PARTS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _best_rates(found: Mapping[str, Sequence[Mapping]]) -> list[str]:
    """What is left of the lead over the reference at the learning rate that is best on validation, for each start."""
    lines = []
    for start in ("", "prompt-trained: "):
        rates = [name for name in found if name.startswith(f"{start}reference, ")]
        if not rates or f"{start}ours" not in found:
            continue
        best = max(rates, key=lambda name: _fraction(found[name], "validation"))
        lead = 100 * (_fraction(found[f"{start}ours"], "structured") - _fraction(found[best], "structured"))
        lines += [
            "",
            f"`{best}` is the reference's best on validation; on test `{start}ours` is {lead:.1f} points ahead.",
        ]
    return lines


def _fraction(rows: Sequence[Mapping], metric: str) -> float:
    return sum(row[metric] for row in rows) / len(rows)


def _mean(rows: Sequence[Mapping], metric: str, test: int | None = None) -> str:
    """The mean over seeds in %, with the interval for `test` samples if given; empty if a row lacks the metric."""
    if any(metric not in row for row in rows):
        return ""
    fraction = _fraction(rows, metric)
    if test is None:
        return f"{100 * fraction:.1f}"
    low, high = wilson(round(fraction * test), test)
    return f"{100 * fraction:.1f} ({100 * low:.1f} to {100 * high:.1f})"
