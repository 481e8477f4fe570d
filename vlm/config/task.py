"""A classification task: the only module that knows its labels, its prompt and the form of an answer."""

import json
import re
from collections import Counter
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from vlm.config.decisions import DECISIONS_FOLDER, Decisions, Reason, Relabelling, check_decisions
from vlm.config.folders import in_repository
from vlm.config.yaml_files import Frozen, named_file, validate


class Badges(Frozen):
    """Synthetic badges, rendered by vlm/sources/badges.py. `icons` maps each label to an icon."""

    severity: float = Field(ge=0, le=1)
    icons: dict[str, str]


class Expected(Frozen):
    """The number of rows of a data set's splits (null: not checked), and the `revision` at which they were counted.

    They are checked only if the source has the same revision: a different count then means that the data set has
    changed although its revision has not. `python -m vlm pin` writes them with the revision.
    """

    revision: str | None = None
    train: int | None = Field(default=None, gt=0)
    test: int | None = Field(default=None, gt=0)


class Source(Frozen):
    """The source of the pictures: exactly one of badges, hub and folder."""

    badges: Badges | None = None
    # A data set on the Hugging Face Hub: its id, its commit and the names of its splits. Rows for validation, and for
    # test if there is no test split, are held out of train.
    hub: str | None = None
    revision: str | None = None
    train: str = "train"
    test: str | None = None
    expect: Expected | None = None
    # A folder of pictures: folder/LABEL/*.jpg; or folder/{train,validation,test}/LABEL/*.jpg; or a metadata file in it
    # (CSV or JSONL, relative to the folder) that lists pictures and their labels, in the columns that `columns` names.
    # `python -m vlm pin` writes `sha256`.
    folder: str | None = None
    metadata: str | None = None
    sha256: str | None = None

    @property
    def folder_path(self) -> Path:
        """The path of `folder`, relative to the repository even if DVC runs in a copy of it (`dvc exp run --temp`)."""
        assert self.folder is not None
        return in_repository(self.folder)

    @model_validator(mode="after")
    def _one_kind(self) -> "Source":
        kinds = [kind for kind in ("badges", "hub", "folder") if getattr(self, kind) is not None]
        if len(kinds) != 1:
            raise ValueError(f"names {' and '.join(kinds) or 'no kind'}; give exactly one of badges, hub, folder")
        own = {"hub": {"revision", "train", "test", "expect"}, "folder": {"metadata", "sha256"}}.get(kinds[0], set())
        stray = [key for key in sorted(self.model_fields_set - own - {kinds[0]}) if getattr(self, key) is not None]
        if stray:
            raise ValueError(f"{stray[0]} has no effect with {kinds[0]}; remove it")
        if self.hub is not None and self.test == self.train:
            raise ValueError(f"test: {self.test!r} is also the train split; null holds test out of train")
        path = PurePosixPath(self.metadata or "")
        if path.is_absolute() or any(part.startswith(".") for part in path.parts):  # `..` is one of these parts
            raise ValueError(
                f"metadata: {self.metadata!r} should be a file in the folder, neither hidden nor in a hidden folder, "
                "because sha256 covers no others"
            )
        return self


class Columns(Frozen):
    image: str = "image"
    label: str | list[str] = "label"  # the values of several columns are joined by spaces
    # Rows with the same value (one car, one patient, one film) are in the same split. None, or an empty cell: no group.
    group: str | None = None

    @property
    def labels(self) -> list[str]:
        return [self.label] if isinstance(self.label, str) else self.label


class Prompt(Frozen):
    """The texts of the prompt. `{labels}` in either of them is replaced by the labels' words, one per line."""

    system: str | None = None
    user: str
    # Position of the picture in the question. With `last`, everything before it is the same for all pictures, so that
    # structured evaluation computes it only once.
    image: Literal["first", "last"] = "first"
    # Order of the labels in {labels}; "sorted" is alphabetical, ignoring case. Models may prefer the first or the last.
    order: Literal["listed", "sorted", "reversed"] = "listed"

    @field_validator("system", "user")
    @classmethod
    def _known_placeholders(cls, text: str | None) -> str | None:
        for found in re.findall(r"\{\s*(\w+)\s*\}", text or ""):
            if found != "labels" and found.casefold().rstrip("s") == "label":
                raise ValueError(f"{{{found}}} is not a placeholder; use {{labels}} for the list of labels")
        return text


class Task(Frozen):
    """The question about a picture, and the possible answers.

    All code that needs a prompt or an answer (training targets, constrained decoding, parsing) gets it from here.
    """

    name: str
    source: Source
    columns: Columns = Columns()
    # Class name in the data -> label. Without it, the names (or numbers) in the data are the labels.
    classes: dict[str, str] | None = None
    # Pictures of a class that is not a label: raise an error, or leave them out of the splits and list them.
    other_classes: Literal["error", "leave_out"] = "error"
    labels: tuple[str, ...] = Field(min_length=1, strict=False)
    aliases: dict[str, list[str]] = Field(default={})
    # Label -> the word with which the prompt lists it and the model answers it, by default the label itself. Everything
    # else (data, predictions, metrics) keeps the label.
    words: dict[str, str] = Field(default={})
    # Label -> what {labels} says about it: its line then reads "WORD: DESCRIPTION".
    descriptions: dict[str, str] = Field(default={})
    # Decisions about single pictures: either here, or in a file in configs/decisions/ that `decisions` names.
    exclude: dict[str, Reason] = Field(default={})
    relabel: dict[str, Relabelling] = Field(default={})
    keep: dict[str, Reason] = Field(default={})
    decisions: str | None = None
    prompt: Prompt
    flip: bool = False  # whether a mirrored picture keeps its label; not if it shows text
    # Form of the model's answer: {"pred_class": "WORD"}, or the bare WORD, which has fewer tokens.
    answer_form: Literal["json", "label"] = Field(default="json", alias="answer")

    @model_validator(mode="after")
    def _consistent(self) -> "Task":
        duplicates = [label for label, count in Counter(self.labels).items() if count > 1]
        if duplicates:
            raise ValueError(f"labels: {duplicates[0]!r} is listed twice; list every label once")
        untidy = [label for label in self.labels if label != label.strip() or not label]
        if untidy:
            raise ValueError(f"labels: {untidy[0]!r} is empty or has white space around it; strip it")
        for label, aliases in self.aliases.items():
            if label not in self.labels:
                raise ValueError(f"aliases: {label!r} is not one of the labels")
            if not all(_plain(alias) for alias in aliases):
                raise ValueError(f"aliases.{label}: an alias is empty or has no letter or digit; remove it")
        names = Counter(plain for label in self.labels for plain in {_plain(name) for name in self._names_of(label)})
        for label, aliases in self.aliases.items():
            for alias in aliases:
                if names[_plain(alias)] > 1:
                    raise ValueError(f"aliases.{label}: {alias!r} also means another label; an alias must mean one")
        for key, mapping in (("classes", self.classes), ("source.badges.icons", self._icons)):
            if mapping is None:
                continue
            mapped = set(mapping.values() if key == "classes" else mapping)
            missing = [label for label in self.labels if label not in mapped]
            if missing:
                raise ValueError(f"{key}: the label {missing[0]!r} is missing; every label needs an entry")
            extra = sorted(mapped - set(self.labels))
            if extra:
                raise ValueError(f"{key}: {extra[0]!r} is not one of the labels")
        return self

    @model_validator(mode="after")
    def _clear_words(self) -> "Task":
        for key, texts in (("words", self.words), ("descriptions", self.descriptions)):
            for label, text in texts.items():
                if label not in self.labels:
                    raise ValueError(f"{key}: {label!r} is not one of the labels")
                if text != text.strip() or not text or len(text.splitlines()) > 1:
                    raise ValueError(
                        f"{key}.{label}: {text!r} should be one line of text without white space around it"
                    )
        meaning: dict[str, str] = {}
        for label in self.labels:
            other = meaning.setdefault(self.word(label), label)
            if other != label:
                raise ValueError(
                    f"words: {other!r} and {label!r} are both {self.word(label)!r}; give each its own word"
                )
        for label, word in self.words.items():
            others = {_plain(name) for other in self.labels if other != label for name in self._names_of(other)}
            if word != label and (_plain(word) or word) in others | set(self.labels) - {label}:
                raise ValueError(f"words.{label}: {word!r} also means another label; a word must mean one")
        return self

    @model_validator(mode="after")
    def _sensible_decisions_and_groups(self) -> "Task":
        if self.columns.group is not None and self.source.hub is None and self.source.metadata is None:
            raise ValueError("columns.group has no effect without source.hub or source.metadata; remove it")
        here = Decisions(exclude=self.exclude, relabel=self.relabel, keep=self.keep)
        check_decisions(here, self.labels)
        if self.decisions is None:
            return self
        for key, decided in here:
            if decided:
                raise ValueError(f"{key}: is here and decisions names a file; move it to {self.decisions}")
        path = PurePosixPath(self.decisions)
        if not path.is_relative_to(DECISIONS_FOLDER) or ".." in path.parts or path.suffix != ".yaml":
            raise ValueError(
                f"decisions: {self.decisions!r} should be a .yaml file in {DECISIONS_FOLDER}, because the "
                "stages prepare and audit depend on that folder"
            )
        return self

    @property
    def _icons(self) -> dict[str, str] | None:
        return self.source.badges.icons if self.source.badges else None

    def doubts(self) -> list[str]:
        """Warnings, one line each, about settings in the task's file that are allowed but probably not intended."""
        file, doubts = f"configs/tasks/{self.name}.yaml", []
        if "{labels}" not in f"{self.prompt.system or ''}{self.prompt.user}":
            doubts.append(f"{file}: prompt: does not list the labels, so the model has to guess them; add {{labels}}")
        if len(self.labels) == 1:
            doubts.append(f"{file}: labels: has one label, so every structured answer is right; add the others")
        folded: dict[str, str] = {}
        for word in map(self.word, self.labels):
            other = folded.setdefault(word.casefold(), word)
            if other != word:
                doubts.append(f"{file}: labels: {other!r} and {word!r} differ only in case")
        return doubts

    def conversation(self, image: Any = None) -> list[dict]:
        """The chat before the model's turn: system prompt (plain text, for all templates), picture, question.

        `image` may be None, because chat templates only need to know where the picture is.
        """
        labels = self._listing()
        picture = {"type": "image"} if image is None else {"type": "image", "image": image}
        question = self.prompt.user.replace("{labels}", labels)
        parts = [picture, {"type": "text", "text": question}]
        messages = [{"role": "user", "content": parts if self.prompt.image == "first" else parts[::-1]}]
        if self.prompt.system is not None:
            messages.insert(0, {"role": "system", "content": self.prompt.system.replace("{labels}", labels)})
        return messages

    def _listing(self) -> str:
        """The text for {labels}: one line for each label."""
        labels = list(self.labels)
        if self.prompt.order == "sorted":
            labels.sort(key=lambda label: (self.word(label).casefold(), self.word(label)))
        elif self.prompt.order == "reversed":
            labels.reverse()
        described = {label: f": {text}" for label, text in self.descriptions.items()}
        return "\n".join(self.word(label) + described.get(label, "") for label in labels)

    def word(self, label: str) -> str:
        """What the model writes for a label."""
        return self.words.get(label, label)

    def answer(self, label: str) -> str:
        """The text with which the model answers `label`."""
        if self.answer_form == "label":
            return self.word(label)
        return json.dumps({"pred_class": self.word(label)}, ensure_ascii=False)

    def parse(self, text: str) -> str | None:
        """The label whose word the text is, ignoring white space, quotes, a full stop, or as a JSON answer; or None."""
        bare = text.strip().strip("\"'").removesuffix(".").strip().strip("\"'")
        for candidate in (text.strip(), bare):  # a word may itself end with a full stop
            if candidate in self._label_of:
                return self._label_of[candidate]
        try:
            word = json.loads(text)["pred_class"]
        except (ValueError, TypeError, KeyError):
            return None
        return self._label_of.get(word) if isinstance(word, str) else None

    def parse_leniently(self, text: str) -> str | None:
        """The label if the text mentions exactly one, by name, word or alias, ignoring case and punctuation; or None.

        Only whole words count. A name that is part of a longer mentioned name ("Land" in "Land Rover") does not count.
        """
        text = f" {_plain(text)} "
        found: set[str] = set()
        for name, labels in self._names:  # longest first
            if f" {name} " in text:
                found |= labels
                text = text.replace(f" {name} ", " | ")
        return found.pop() if len(found) == 1 else None

    def _names_of(self, label: str) -> list[str]:
        return [label, self.word(label), *self.aliases.get(label, [])]

    @cached_property
    def _label_of(self) -> dict[str, str]:
        """Label by word."""
        return {self.word(label): label for label in self.labels}

    @cached_property
    def _names(self) -> list[tuple[str, set[str]]]:
        names: dict[str, set[str]] = {}  # labels that differ only in punctuation ("C", "C++") share a plain name
        for label in self.labels:
            for name in self._names_of(label):
                names.setdefault(_plain(name), set()).add(label)
        names.pop("", None)
        return sorted(names.items(), key=lambda pair: -len(pair[0]))


def load_task(name: str) -> Task:
    """Reads configs/tasks/<name>.yaml. Raises InputError."""
    return validate(Task, *named_file(name, "tasks"))


def _plain(text: str) -> str:
    """Lower case, words separated by single spaces, no punctuation."""
    return " ".join(re.sub(r"[\W_]+", " ", text.casefold()).split())
