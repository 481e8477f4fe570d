"""A model's answers to a split as a table: what the notebook, `measure` and the report have in common."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from vlm.config.errors import InputError
from vlm.config.params import load_params
from vlm.data import predictions
from vlm.measuring import comparison, sheets
from vlm.measuring.revisions import Revision

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image

NO_LABEL = "(no label)"


class Predictions:
    """The answers in predictions/<name>/<split>.parquet, and the labels of their task in the task's order.

    `frame` has one row per sample, in the split's order. Its columns are those of the file (id, label, text, predicted,
    probabilities and plain_probabilities, see vlm/data/predictions.py), `right` (bool), and `confidence`: the
    probability of the most probable label, NaN if the answers have no probabilities.
    """

    def __init__(
        self,
        name: str,
        frame: "pd.DataFrame",
        labels: Sequence[str],
        revision: Revision | None = None,
        split: str = "test",
    ) -> None:
        """Raises InputError if a label in `frame` is not in `labels`, or if a sample has not one probability each."""
        self.name = name
        self.labels = tuple(labels)
        self.split = split
        self._revision = revision
        given = frame["probabilities"].notna()
        self.has_probabilities = len(frame) > 0 and bool(given.all())
        unknown = sorted({*frame["label"], *frame["predicted"].dropna()} - {*self.labels})
        if unknown or set(frame["probabilities"][given].map(len)) - {len(self.labels)}:
            what = (
                f"the label {unknown[0]!r}, which is not one" if unknown else "probabilities of other labels than those"
            )
            if revision:
                raise InputError(
                    f"{self.file}: has {what} of the task in params.yaml, both as of {revision.name}; "
                    f"name a revision where the two belong together"
                )
            raise InputError(
                f"{self.file}: has {what} of the task in params.yaml; "
                f"`dvc repro {predictions.stage(name)}` makes it again"
            )
        self.frame = frame.assign(
            right=(frame["label"] == frame["predicted"]).astype(bool),
            confidence=frame["probabilities"].map(max).astype(float) if self.has_probabilities else float("nan"),
        )

    @classmethod
    def load(cls, name: str, revision: str | Revision | None = None, split: str = "test") -> "Predictions":
        """The answers to a split in the working tree, or those of a revision: a commit, a branch, a tag or an
        experiment's name.

        Several loads from one Revision open it only once, which takes a second. Raises InputError if there are none.
        """
        import pandas as pd

        if revision is None:
            return cls(name, predictions.read(name, split), load_params().task.labels, split=split)
        there = revision if isinstance(revision, Revision) else Revision(revision)
        task = _value(there, "params.yaml", "task")
        labels = _value(there, f"configs/tasks/{task}.yaml", "labels")
        with there.open(predictions.path(name, split).as_posix()) as file:
            return cls(name, pd.read_parquet(file), labels, there, split)

    def __repr__(self) -> str:
        where = f" on {self.split}" if self.split != "test" else ""
        where += f" at {self._revision.name}" if self._revision else ""
        return f"<{self.name}{where}: {self.frame['right'].sum()} of {len(self.frame)} right>"

    def plain(self, name: str | None = None) -> "Predictions":
        """The answers of the model's own probabilities, before the label prior was corrected; these, if none was.

        `name` is for the page and the like, which show both; without it they keep theirs.
        """
        # Predictions of earlier revisions do not have the column.
        if "plain_probabilities" not in self.frame or not self.frame["plain_probabilities"].notna().any():
            return self
        import numpy as np

        best = np.stack(self.frame["plain_probabilities"].to_list()).argmax(1)
        frame = self.frame.assign(
            predicted=[self.labels[label] for label in best],
            probabilities=self.frame["plain_probabilities"],
            plain_probabilities=None,
        )
        return Predictions(name or self.name, frame, self.labels, self._revision, self.split)

    @property
    def file(self) -> Path:
        """The file with these answers."""
        return predictions.path(self.name, self.split)

    @property
    def data(self) -> str:
        """The path of the split that was answered."""
        return f"data/{self.split}.parquet"

    def mistakes(self) -> "pd.DataFrame":
        """The rows of `frame` with wrong answers, the most confident first; raw answers are in the split's order."""
        return self.frame[~self.frame["right"]].sort_values("confidence", ascending=False, kind="stable")

    def show(self, only_mistakes: bool = True, n: int = 24, rows: "pd.DataFrame | None" = None) -> "Image.Image":
        """A picture of up to `n` samples, each with its label and the answer, which a notebook displays.

        They are the first mistakes, or the first samples of the split. Or pass `rows`, a table with a column `id` that
        says which, such as a part of `frame`. Raises InputError if the split that was answered is not there any more.
        """
        what, chosen = ("mistakes", self.mistakes()) if only_mistakes else ("samples", self.frame)
        if rows is not None:
            what, chosen = "samples", self.frame.set_index("id").loc[rows["id"]].reset_index()
        return sheets.answers(f"{self.name}: {min(n, len(chosen)):,} of {len(chosen):,} {what}", chosen.head(n), self)

    def open_data(self) -> BinaryIO:
        """Opens the split that was answered, as it is at the revision of the answers. Raises InputError."""
        if self._revision:
            return self._revision.open(self.data)
        if not Path(self.data).exists():
            raise InputError(f"{self.data}: no such file; `dvc repro prepare` writes it, `dvc pull` fetches it")
        return Path(self.data).open("rb")

    def confusion(self) -> "pd.DataFrame":
        """The number of samples by true label (rows) and answer (columns), with the labels that occur, in their order.

        A last column counts the answers that are no label, if there are any.
        """
        import pandas as pd

        counted = pd.crosstab(self.frame["label"], self.frame["predicted"].fillna(NO_LABEL))
        occurring = {*counted.index, *counted.columns}
        rows = [label for label in self.labels if label in occurring]
        return counted.reindex(index=rows, columns=rows + [NO_LABEL] * (NO_LABEL in occurring), fill_value=0)

    def per_class(self) -> "pd.DataFrame":
        """f1, precision, recall and support (number of samples) of each label that occurs as the truth.

        An answer that is no label is a false negative for the true label and a false positive for none.
        """
        import pandas as pd

        occurring = set(self.frame["label"])
        present = pd.Index([label for label in self.labels if label in occurring], name="label")
        support, answered, right = (
            labels.value_counts().reindex(present, fill_value=0)
            for labels in (self.frame["label"], self.frame["predicted"], self.frame["label"][self.frame["right"]])
        )
        columns = {
            "f1": 2 * right / (support + answered),
            "precision": (right / answered).fillna(0.0),  # 0 of a label that is no answer
            "recall": right / support,
            "support": support,
        }
        return pd.DataFrame(columns)

    def compare(self, other: "Predictions") -> dict[str, float | int]:
        """How much accuracy `other` gains on the samples that both answer: see vlm/measuring/comparison.py.

        `samples` is their number. Raises InputError if they have no samples in common.
        """
        before, after = self._common(other)
        return {"samples": len(before), **comparison.compare(before, after)}

    def changes(self, other: "Predictions") -> "pd.DataFrame":
        """The samples that `other` answers differently: id, label, before, after, and change.

        The change is "fixed" if only `other` is right, "broken" if only these answers are, else "still wrong". Raises
        InputError if they have no samples in common.
        """
        import numpy as np

        before, after = self._common(other)
        change = np.select(
            [~before["right"] & after["right"], before["right"] & ~after["right"]], ["fixed", "broken"], "still wrong"
        )
        table = before[["id", "label"]].assign(before=before["predicted"], after=after["predicted"], change=change)
        return table[before["predicted"].fillna("") != after["predicted"].fillna("")]

    def _common(self, other: "Predictions") -> "tuple[pd.DataFrame, pd.DataFrame]":
        """The rows of both frames with the same id and label, in the order of this one's.

        A label may have been corrected in between, but if most labels of the common ids differ, the samples are others:
        a source may number its pictures, and number others with another seed.
        """
        both = self.frame[["id", "label"]].merge(other.frame[["id", "label"]])["id"]
        if 2 * len(both) <= self.frame["id"].isin(other.frame["id"]).sum():
            raise InputError(f"{self.name} and {other.name}: are answers to different samples; expected some in common")
        return tuple(one.frame.set_index("id").loc[both].reset_index() for one in (self, other))


def _value(there: Revision, path: str, key: str) -> Any:
    """A key's value in a YAML file of a revision. Raises InputError if there is none."""
    values = there.read_yaml(path)
    if not isinstance(values, dict) or not values.get(key):
        raise InputError(f"{path}: has no {key} in {there.name}")
    return values[key]
