"""Combines the values of a file in configs/prompts to whole wordings."""

import json
import math
import random

from vlm.config.prompts import Candidates, Wording
from vlm.config.task import Task

_DRAWN = 20  # times as many combinations as wanted, because some of them say the same


def wordings(candidates: Candidates, task: Task, most: int, seed: int) -> tuple[Wording, ...]:
    """The task's own wording, and other combinations of the candidates' values: all, or a sample, `most` together.

    Of several that make the same prompt and answers, such as orders of a list that the prompt does not show, it takes
    one.
    """
    parts = candidates.parts(task)
    total = math.prod(map(len, parts.values()))
    numbers = range(1, total)  # 0 is the combination of the task's own values
    if total > most:
        numbers = random.Random(seed).sample(numbers, min(total - 1, _DRAWN * most))
    found: dict[str, tuple[int, Wording]] = {}
    for number in (0, *numbers):
        wording = _combination(parts, number)
        found.setdefault(_said(wording, task), (number, wording))
        if len(found) == most:
            break
    return tuple(wording for _, wording in sorted(found.values(), key=lambda pair: pair[0]))


def _combination(parts: dict[str, list], number: int) -> Wording:
    """One of all combinations, which are numbered; the first part's values change fastest."""
    values = {}
    for key, choices in parts.items():
        number, place = divmod(number, len(choices))
        values[key] = choices[place]
    if "{labels}" not in f"{values['system']}{values['user']}":
        values |= {key: parts[key][0] for key in ("descriptions", "order")}  # they have no effect
    return Wording(**values)


def _said(wording: Wording, task: Task) -> str:
    """All that the model reads and writes with a wording."""
    made = wording.applied(task)
    return json.dumps([made.conversation(), *map(made.answer, made.labels)])
