"""What `prepare` did: the counts, the one-line summary, the warnings, and the list of pictures that were left out."""

import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from vlm.sources.splits import Skipped

SPLITS = ("train", "validation", "test")
_KINDS = {  # the kinds of Skipped, as the summary names them
    "unreadable": "unreadable",
    "duplicate": "duplicate",
    "conflict": "with conflicting labels",
    "other": "of other classes",
    "tied": "tied to another split",
    "excluded": "excluded",
}
_UNBALANCED = 20  # the largest class of a split, as a multiple of the smallest


@dataclass(frozen=True)
class Report:
    """What `prepare` did.

    `rows` are counts by split and label, with every label of the task in its order. `skipped` are the pictures that are
    in no split; `blank` and `tiny` are ids of pictures that are in one although they show nothing. `relabelled` are the
    ids of relabelled rows; `test_changed` is the number of test rows that decisions removed or relabelled. `in_source`
    counts the source's pictures by label (None for badges), `near_duplicates` the pictures in the splits that look like
    others and were kept on one side with them, `groups` the groups in the splits. `notes` are further warnings.
    """

    rows: dict[str, dict[str, int]]
    skipped: tuple[Skipped, ...] = ()
    blank: tuple[str, ...] = ()
    tiny: tuple[str, ...] = ()
    relabelled: tuple[str, ...] = ()
    test_changed: int = 0
    in_source: dict[str, int] | None = None
    near_duplicates: int = 0
    groups: int = 0
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        return sum(sum(counts.values()) for counts in self.rows.values())

    def details(self) -> dict[str, int]:
        """The rows of each split, the size of the smallest and the largest class, and the pictures left out by kind."""
        sizes = [sum(counts[label] for counts in self.rows.values()) for label in self.rows["train"]]
        left_out = Counter(skipped.kind for skipped in self.skipped)
        return {
            **{f"{split}_rows": sum(self.rows[split].values()) for split in SPLITS},
            "left_out": len(self.skipped),
            "classes": len(sizes),
            "smallest_class": min(sizes),
            "largest_class": max(sizes),
            "duplicates_left_out": left_out["duplicate"],
            "conflicts_left_out": left_out["conflict"],
            "unreadable_left_out": left_out["unreadable"],
            "other_classes_left_out": left_out["other"],
            "tied_to_another_split_left_out": left_out["tied"],
            "excluded": left_out["excluded"],
            "relabelled": len(self.relabelled),
            "test_changed": self.test_changed,
            "near_duplicates": self.near_duplicates,
            "groups": self.groups,
            "blank": len(self.blank),
            "tiny_pictures": len(self.tiny),
        }

    def summary(self) -> str:
        """One line: the rows of each split, how many pictures were left out and why, and what decisions changed."""
        rows = ", ".join(f"{sum(self.rows[split].values())} {split}" for split in SPLITS)
        left_out = Counter(skipped.kind for skipped in self.skipped)
        reasons = ", ".join(f"{number} {_KINDS[kind]}" for kind, number in left_out.most_common())
        parts = [rows, f"{count(len(self.skipped), 'picture')} left out" + (f" ({reasons})" if reasons else "")]
        if self.relabelled:
            parts.append(f"{len(self.relabelled)} relabelled")
        if self.near_duplicates:
            parts.append(f"{count(self.near_duplicates, 'near duplicate')} kept on one side")
        if self.test_changed:
            rows = count(self.test_changed, "test row")
            parts.append(f"decisions changed {rows}, which makes test another benchmark")
        return "; ".join(parts)

    def warnings(self) -> list[str]:
        """At most one line each about labels without rows, single pictures, balance, and pictures that show nothing."""
        return [*self._missing(), *self._single(), *self._unbalanced(), *self.notes, *self._showing_little()]

    def _missing(self) -> list[str]:
        missing, lacking = [], set()
        for split in SPLITS:
            counts = self.rows[split]
            without = [label for label, number in counts.items() if number == 0]
            if without:
                lacking.update(without)
                rows = count(sum(counts.values()), f"{split} row")
                missing.append(f"{rows} for {len(counts)} labels, none for {_and_more(without)}")
        if not missing:
            return []
        remedy = "ask for more rows" if any(map(self._has_more, lacking)) else "the data has no more of them"
        return [f"params.yaml: prepare: {'; '.join(missing)}; {remedy}"]

    def _has_more(self, label: str) -> bool:
        """Whether the source has more pictures of a label than there are in the splits. There is no end of badges."""
        used = sum(counts[label] for counts in self.rows.values())
        return self.in_source is None or self.in_source.get(label, 0) > used

    def _single(self) -> list[str]:
        single = [label for label, number in (self.in_source or {}).items() if number == 1]
        return [f"there is a single picture of {_and_more(single)}: train or test has none of it"] if single else []

    def _unbalanced(self) -> list[str]:
        for split in ("train", "test"):
            sizes = {label: number for label, number in self.rows[split].items() if number}
            smallest, largest = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
            if sizes[largest] >= _UNBALANCED * sizes[smallest]:
                remedy = "finetune.balance draws rare labels more often" if split == "train" else "see macro_f1, too"
                return [
                    f"{split} is very unbalanced: {sizes[largest]} rows of {largest!r}, {sizes[smallest]} of "
                    f"{smallest!r}; {remedy}"
                ]
        return []

    def _showing_little(self) -> list[str]:
        odd = [(self.blank, "blank (all pixels equal)"), (self.tiny, "tiny (a side shorter than 8 pixels)")]
        found = [f"{len(ids)} {kind}: {', '.join(ids[:3])}{', ...' if ids[3:] else ''}" for ids, kind in odd if ids]
        return [f"pictures in the splits that show little: {'; '.join(found)}"] if found else []


def write_skipped(path: Path, report: Report) -> None:
    """Writes a CSV with one row for each picture that was left out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "kind", "reason"])
        writer.writerows((skipped.id, skipped.kind, skipped.reason) for skipped in report.skipped)
    temporary.replace(path)


def count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _and_more(labels: list[str]) -> str:
    return f"{labels[0]!r}" + (f" and {len(labels) - 1} more" if len(labels) > 1 else "")
