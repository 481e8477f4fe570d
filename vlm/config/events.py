"""What a running job tells whoever started it."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """`done` of `total` units of work are finished."""

    done: int
    total: int
    unit: str = "it"


@dataclass(frozen=True)
class Scalars:
    """Values at an optimizer step, by name ("train/loss")."""

    step: int
    values: dict[str, float]


@dataclass(frozen=True)
class Log:
    """A line to read."""

    text: str


Event = Progress | Scalars | Log
Emit = Callable[[Event], None]
