"""Trackers for the scalars of a training: DVCLive, and Weights & Biases if params.yaml names it."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from vlm.config.errors import InputError
from vlm.config.events import Scalars

_KEY = "params.yaml: finetune.track_with"


@contextmanager
def tracker(names: Sequence[str], directory: str, run: str) -> Iterator[Callable[[Scalars], None]]:
    """Yields a function that passes scalars to every tracker in `names`; DVCLive writes to `directory`.

    `run` is the run's id on Weights & Biases: a training that is resumed after a crash continues the same run there.
    Raises InputError for a tracker that is not installed or refuses the credentials.
    """
    with ExitStack() as stack:
        consumers = [stack.enter_context(_TRACKERS[name](directory, run)) for name in names]

        def log(event: Scalars) -> None:
            for consumer in consumers:
                consumer(event)

        yield log


@contextmanager
def _dvclive(directory: str, run: str) -> Iterator[Callable[[Scalars], None]]:
    from dvclive import Live

    # dvc.yaml and the experiment are managed by the pipeline; DVCLive only writes the values.
    with Live(directory, dvcyaml=False, save_dvc_exp=False) as live:

        def log(event: Scalars) -> None:
            live.step = event.step
            for name, value in event.values.items():
                live.log_metric(name, value)
            live.make_summary()

        yield log


@contextmanager
def _wandb(directory: str, run: str) -> Iterator[Callable[[Scalars], None]]:
    try:
        import wandb
    except ImportError:
        raise InputError(f"{_KEY}: wandb is not installed; `uv pip install wandb` installs it") from None
    project = os.environ.get("WANDB_PROJECT", "vlm-classification")
    try:
        tracked = wandb.init(project=project, id=run, resume="allow")
    except wandb.errors.UsageError as error:
        raise InputError(f"{_KEY}: wandb: {str(error).splitlines()[0]}; run `wandb login` first") from None
    with tracked:
        yield lambda event: tracked.log(event.values, step=event.step)


_TRACKERS = {"dvclive": _dvclive, "wandb": _wandb}
