"""Reports a training run's progress and scalars as events."""

import math
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vlm.config.errors import InputError
from vlm.config.events import Emit, Event, Progress, Scalars

# The trainer's name for a scalar -> DVCLive's. Times and speeds are left out, because they differ between equal runs.
_SCALARS = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "eval_loss": "eval/loss",
    "eval_accuracy": "eval/accuracy",
    "eval_log_loss": "eval/log_loss",
}


class Reporter(TrainerCallback):
    """Turns the trainer's steps and logs into events, and raises InputError if the loss is not below `diverged`."""

    def __init__(self, emit: Emit, diverged: float) -> None:
        self._emit = emit
        self._diverged = diverged

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._emit(Progress(state.global_step, state.max_steps, "step"))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._emit(Progress(state.global_step, state.max_steps, "step"))
        if state.global_step >= state.max_steps:
            # The last step always gets a validation pass and a checkpoint, whatever eval_steps is.
            control.should_evaluate = control.should_save = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float],
        **kwargs: Any,
    ) -> None:
        loss = logs.get("loss", logs.get("eval_loss"))
        if loss is not None and not (math.isfinite(loss) and loss < self._diverged):
            raise InputError(
                f"params.yaml: finetune.learning_rate: the loss is {loss} at step {state.global_step} with a "
                f"learning rate of {args.learning_rate:g}: training diverged; try a smaller one"
            )
        emit_scalars({**logs, "step": state.global_step}, self._emit)


def emit_scalars(entry: dict[str, float], emit: Emit) -> None:
    """Emits the scalars of one entry of the trainer's log."""
    values = {name: float(entry[logged]) for logged, name in _SCALARS.items() if logged in entry}
    if values:
        emit(Scalars(int(entry["step"]), values))


def once(emit: Emit) -> Emit:
    """Wraps `emit` to drop scalars that were already emitted for a step, which a resumed run replays or repeats."""
    seen: set[tuple[int, str]] = set()

    def forward(event: Event) -> None:
        if isinstance(event, Scalars):
            event = Scalars(event.step, {n: v for n, v in event.values.items() if (event.step, n) not in seen})
            seen.update((event.step, name) for name in event.values)
            if not event.values:
                return
        emit(event)

    return forward


def silent(event: Event) -> None:
    """Drops the event; for all processes except the first."""
