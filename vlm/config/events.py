"""The events that a running job emits."""

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
    """A message of one line for the user."""

    text: str


Event = Progress | Scalars | Log
Emit = Callable[[Event], None]
