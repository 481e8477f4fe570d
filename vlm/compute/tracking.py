"""Where a training's scalars go: DVCLive, and Weights & Biases if params.yaml names it."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from vlm.config.errors import InputError
from vlm.config.events import Scalars

_KEY = "params.yaml: finetune.track_with"


@contextmanager
def tracker(names: Sequence[str], directory: str, run: str) -> Iterator[Callable[[Scalars], None]]:
    """A consumer of scalars that hands them to every tracker in `names`; DVCLive writes into `directory`.

    `run` is what Weights & Biases knows this training by: one that goes on after a crash goes on there, too.
    Raises InputError for a tracker that is not installed or lets nobody in.
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

    # The stage owns dvc.yaml and the experiment; DVCLive only writes the points.
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
        raise InputError(f"{_KEY}: wandb: {str(error).splitlines()[0]}; `wandb login` first") from None
    with tracked:
        yield lambda event: tracked.log(event.values, step=event.step)


_TRACKERS = {"dvclive": _dvclive, "wandb": _wandb}
