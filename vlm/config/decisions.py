"""What somebody decided about single pictures: in a task's file, or in a file in configs/decisions that it names."""

from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

from vlm.config.errors import InputError
from vlm.config.yaml_files import Frozen, read_mapping, validate

if TYPE_CHECKING:
    from vlm.config.task import Task

DECISIONS_FOLDER = PurePosixPath("configs", "decisions")  # in dvc.yaml, prepare and audit depend on it


def _not_empty(reason: Any) -> Any:
    if reason is None or (isinstance(reason, str) and not reason.strip()):
        raise ValueError("is an empty reason; write why")
    return reason


Reason = Annotated[str, BeforeValidator(_not_empty)]  # so that somebody else can check the decision


class Relabelling(Frozen):
    to: str
    reason: Reason


class Decisions(Frozen):
    """What somebody decided about single pictures, by their ids.

    `exclude` maps a picture to the reason why it is in no split, `relabel` to its new label and the reason for it:
    `prepare` applies these two to the splits. `keep` maps a picture that somebody looked at and found right to the
    reason: it changes no split, but the audit ranks the picture last.
    """

    exclude: dict[str, Reason] = Field(default={})
    relabel: dict[str, Relabelling] = Field(default={})
    keep: dict[str, Reason] = Field(default={})

    def label(self, id_: str, label: str) -> str:
        """The label of a picture that the data calls `label`."""
        return self.relabel[id_].to if id_ in self.relabel else label


def load_decisions(task: "Task") -> Decisions:
    """The decisions in the task's file, or in the file that it names. Raises InputError."""
    if task.decisions is None:
        return Decisions(exclude=task.exclude, relabel=task.relabel, keep=task.keep)
    if not Path(task.decisions).exists():
        raise InputError(
            f"configs/tasks/{task.name}.yaml: decisions: there is no file {task.decisions!r}; its path starts at the "
            "repository, and `dvc exp run --temp` and `--queue` need it in git"
        )
    decisions = validate(Decisions, read_mapping(task.decisions), task.decisions)
    try:
        check_decisions(decisions, task.labels)
    except ValueError as error:
        raise InputError(f"{task.decisions}: {error}") from None
    return decisions


def check_decisions(decisions: Decisions, labels: Collection[str]) -> None:
    """Raises ValueError for a picture with two decisions, and for a new label that is not one of the labels."""
    keys: dict[str, str] = {}
    for key, decided in decisions:
        for id_ in decided:
            if id_ in keys:
                raise ValueError(f"{key}: {id_!r} is in {keys[id_]}, too; remove one of the two")
            keys[id_] = key
    for id_, decision in decisions.relabel.items():
        if decision.to not in labels:
            raise ValueError(
                f"relabel.{id_}.to: {decision.to!r} is not one of the task's labels; correct it, or add it to labels"
            )
