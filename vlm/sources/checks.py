"""Checks of decisions, near duplicates and groups. A warning is one line, and none for what is normal."""

from collections.abc import Callable, Collection, Mapping, Sequence
from difflib import get_close_matches

from vlm.config.decisions import Decisions
from vlm.config.errors import InputError
from vlm.config.task import Task
from vlm.sources.near_duplicates import Swallowed
from vlm.sources.pool import Pool
from vlm.sources.report import count
from vlm.sources.splits import Skipped


def decisions_file(task: Task) -> str:
    return task.decisions or f"configs/tasks/{task.name}.yaml"


def require_known(task: Task, decisions: Decisions, known: Callable[[str], object], examples: Collection[str]) -> None:
    """Raises InputError if there is a decision about an unknown picture. The message names the most similar example."""
    for key, decided in decisions:
        unknown = [id_ for id_ in decided if not known(id_)]
        if unknown:
            example = next(iter(get_close_matches(unknown[0], examples, 1) or examples))
            more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
            raise InputError(
                f"{decisions_file(task)}: {key}: there is no picture {unknown[0]!r}{more}; ids look like {example!r}"
            )


def beyond_the_rows(task: Task, decisions: Decisions, rows: Mapping[str, int]) -> list[str]:
    """A warning about decisions on badges, `SPLIT-ROW`, that are not among the `rows` of their split."""
    names = [id_.rsplit("-", 1) for _, decided in decisions for id_ in decided]
    beyond = [(split, row) for split, row in names if int(row) >= rows[split]]
    if not beyond:
        return []
    split, row = beyond[0]
    more = f" (and {len(beyond) - 1} more)" if len(beyond) > 1 else ""
    return [
        f"{decisions_file(task)}: no effect of the decision about {split}-{row}{more}, because {split} has "
        f"{count(rows[split], 'row')}"
    ]


def relabelled_in_vain(task: Task, decisions: Decisions, skipped: Sequence[Skipped]) -> list[str]:
    """A warning about relabelled pictures that are left out of the splits."""
    found = [skip for skip in skipped if skip.id in decisions.relabel]
    if not found:
        return []
    return [
        f"{decisions_file(task)}: relabel: no effect on {count(len(found), 'picture')} left out of the splits, such as "
        f"{found[0].id}, which {found[0].reason}"
    ]


def relabelled_to_the_same(task: Task, decisions: Decisions, ids: Sequence[str]) -> list[str]:
    """A warning about the pictures in the splits, `ids`, whose new label is the one that they have in the data."""
    if not ids:
        return []
    more = f" (and {len(ids) - 1} more like it)" if len(ids) > 1 else ""
    return [
        f"{decisions_file(task)}: relabel: no effect on {ids[0]}{more}, which the data labels "
        f"{decisions.relabel[ids[0]].to!r}, too; move it to keep if the label is right, and correct it if not"
    ]


def alike(task: Task, swallowed: Sequence[Swallowed]) -> list[str]:
    """A warning about near duplicates that were not kept on one side because they are most of a class."""
    if not swallowed:
        return []
    worst = max(swallowed, key=lambda found: found.alike)
    more = f" (and most of {count(len(swallowed) - 1, 'other label')})" if len(swallowed) > 1 else ""
    can_group = task.source.hub is not None or task.source.metadata is not None
    remedy = "; columns.group keeps together what belongs together" if can_group else ""
    return [
        f"near duplicates: {worst.alike} of {worst.pictures} pictures of {worst.label!r}{more} look alike to the "
        f"perceptual hash, so they are split like other pictures{remedy}"
    ]


def few_groups(task: Task, pool: Pool, splits: int) -> list[str]:
    """A warning about labels with fewer groups than the number of splits that are drawn from the pool."""
    if pool.groups is None:
        return []
    groups: dict[str, set[str | None]] = {label: set() for label in task.labels}
    for label, group in zip(pool.labels, pool.groups, strict=True):
        if label is not None:
            groups[label].add(group)
    few = [label for label, of_label in groups.items() if None not in of_label and len(of_label) < splits]
    if not few:
        return []
    more = f" (and {len(few) - 1} more like it)" if len(few) > 1 else ""
    return [
        f"columns.group: {few[0]!r}{more} has pictures of {count(len(groups[few[0]]), 'group')}, too few for "
        f"{count(splits, 'split')}"
    ]


def shared_groups(groups: Mapping[str, set[str]]) -> list[str]:
    """A warning about groups that the source's own test split shares with the others; `groups` are by split."""
    shared = groups["test"] & (groups["train"] | groups["validation"])
    if not shared:
        return []
    return [
        f"columns.group: the source's test split shares {count(len(shared), 'group')} with the other splits, such as "
        f"{min(shared)!r}; `source.test: null` holds test out of train, group by group"
    ]
