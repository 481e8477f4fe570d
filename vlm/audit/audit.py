"""Audits the three splits with whatever predictions there are, and writes the ranked suspects."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from vlm.audit import suspects
from vlm.audit.suspects import KINDS, Suspect
from vlm.config.events import Emit
from vlm.config.task import Task
from vlm.data import json_files

# Of two copies, the one in the later split is the suspect: test should stay as it is.
SPLITS = {split: Path("data", f"{split}.parquet") for split in ("test", "validation", "train")}


@dataclass(frozen=True)
class Audit:
    """The suspects, the most suspicious first, among so many samples.

    `judged` is the number of samples whose label was checked, and `accuracy` how often the models agree with the label.
    `unseen` says what was not checked and why, a line each.
    """

    suspects: list[Suspect]
    samples: int
    judged: int
    accuracy: float
    unseen: list[str]

    @property
    def counts(self) -> dict[str, int]:
        """The number of suspects by kind, all kinds in the order of KINDS."""
        found = Counter(suspect.kind for suspect in self.suspects)
        return {kind: found[kind] for kind in KINDS}

    def summary(self) -> str:
        """One line: how many suspects there are, by kind."""
        listed = [f"{count} {KINDS[kind][count != 1]}" for kind, count in self.counts.items() if count]
        return f"{self.samples:,} samples: {', '.join(listed) or 'nothing suspicious'}"

    def write(self, plots: Path, metrics: Path) -> None:
        """Writes suspects.csv and details.json into `plots`, and the number of suspects to `metrics`."""
        suspects.write(plots / "suspects.csv", self.suspects)
        details = {"samples": self.samples, "labels_checked": self.judged, "models_agree": self.accuracy}
        json_files.write(plots / "details.json", details | self.counts)
        json_files.write(metrics, {"suspects": len(self.suspects)})


def audit(task: Task, emit: Emit) -> Audit:
    """Looks at the pictures and labels of data/*.parquet.

    Raises InputError if one of these files is missing or has labels that are not the task's.
    """
    from vlm.audit import duplicates, label_errors, pictures

    judgement = label_errors.judge(task.labels, SPLITS)  # first, because it tells at once if the data do not fit
    looks = pictures.looks(SPLITS, emit)
    bad, common = pictures.bad_pictures(looks)
    found = [*bad, *duplicates.near_duplicates(looks, emit), *label_errors.label_errors(judgement)]
    return Audit(
        suspects=suspects.ranked(found),
        samples=len(looks),
        judged=len(judgement.samples),
        accuracy=judgement.accuracy,
        unseen=common + judgement.unseen(),
    )
