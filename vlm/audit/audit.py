"""Audits the three splits with whatever predictions there are, and writes the ranked suspects."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from vlm.audit import suspects
from vlm.audit.suspects import KINDS, Suspect
from vlm.config.decisions import load_decisions
from vlm.config.events import Emit
from vlm.config.task import Task
from vlm.data import json_files

# Of two copies, the one in the later split is the suspect: test should stay as it is.
SPLITS = {split: Path("data", f"{split}.parquet") for split in ("test", "validation", "train")}


@dataclass(frozen=True)
class Audit:
    """The suspects, the most suspicious first and the decided ones last, among so many samples.

    `judged` is the number of samples whose label was checked, and `accuracy` how often the models agree with the label.
    `unseen` says what was not checked and why, a line each.
    """

    suspects: list[Suspect]
    samples: int
    judged: int
    accuracy: float
    unseen: list[str]

    @property
    def undecided(self) -> list[Suspect]:
        """The suspects that somebody still has to look at."""
        return [suspect for suspect in self.suspects if not suspect.decided]

    @property
    def counts(self) -> dict[str, int]:
        """The number of undecided suspects by kind, all kinds in the order of KINDS."""
        found = Counter(suspect.kind for suspect in self.undecided)
        return {kind: found[kind] for kind in KINDS}

    def summary(self) -> str:
        """One line: how many undecided suspects there are, by kind, and how many decided ones."""
        listed = [f"{count} {KINDS[kind][count != 1]}" for kind, count in self.counts.items() if count]
        decided = len(self.suspects) - len(self.undecided)
        more = f"; {decided} decided already" if decided else ""
        return f"{self.samples:,} samples: {', '.join(listed) or 'nothing suspicious'}{more}"

    def write(self, plots: Path, metrics: Path) -> None:
        """Writes suspects.csv and details.json into `plots`, and the number of undecided suspects to `metrics`."""
        suspects.write(plots / "suspects.csv", self.suspects)
        details = {"samples": self.samples, "labels_checked": self.judged, "models_agree": self.accuracy}
        decided = {"decided": len(self.suspects) - len(self.undecided)}
        json_files.write(plots / "details.json", details | self.counts | decided)
        json_files.write(metrics, {"suspects": len(self.undecided)})


def audit(task: Task, emit: Emit) -> Audit:
    """Looks at the pictures and labels of data/*.parquet.

    Raises InputError if one of these files is missing or has labels that are not the task's, or if the decisions about
    single pictures are not valid.
    """
    from vlm.audit import duplicates, label_errors, pictures

    decisions = load_decisions(task)
    judgement = label_errors.judge(task.labels, SPLITS)  # first, because it tells at once if the data do not fit
    looks = pictures.looks(SPLITS, emit)
    bad, common = pictures.bad_pictures(looks)
    found = [*bad, *duplicates.near_duplicates(looks, emit), *label_errors.label_errors(judgement)]
    return Audit(
        suspects=suspects.ranked(found, decisions),
        samples=len(looks),
        judged=len(judgement.samples),
        accuracy=judgement.accuracy,
        unseen=common + judgement.unseen(),
    )
