"""configs/prompts/<name>.yaml: other wordings of a task's prompt, among which the prompt search chooses."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from vlm.config.errors import InputError
from vlm.config.task import Task
from vlm.config.yaml_files import Frozen, read_mapping, validate

FOLDER = Path("configs", "prompts")

Order = Literal["listed", "sorted", "reversed"]
Image = Literal["first", "last"]
Answer = Literal["json", "label"]
# Ways to make words of any task's labels
Respelling = Literal["lower", "spaces"]


class Wording(Frozen):
    """All that the search changes of a task. The keys are those of a task's file, some in the block `prompt`."""

    system: str | None
    user: str
    words: dict[str, str]
    descriptions: dict[str, str]
    order: Order
    image: Image
    answer: Answer

    @classmethod
    def of(cls, task: Task) -> "Wording":
        prompt = task.prompt
        return cls(
            system=prompt.system,
            user=prompt.user,
            words=task.words,
            descriptions=task.descriptions,
            order=prompt.order,
            image=prompt.image,
            answer=task.answer_form,
        )

    def applied(self, task: Task) -> Task:
        """The task with this wording. Raises InputError, without the name of a file, if it does not fit the labels."""
        values = task.model_dump(by_alias=True, exclude_unset=True)
        prompt = {key: getattr(self, key) for key in ("system", "user", "image", "order")}
        values |= {"prompt": prompt, "words": self.words, "descriptions": self.descriptions, "answer": self.answer}
        try:
            return Task.model_validate(values)
        except ValidationError as error:
            raise InputError(error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")) from None


class Proposer(Frozen):
    """A language model that proposes questions (vlm/prompting/proposing.py)."""

    model: str = Field(min_length=1)  # as DSPy names models: openai/MODEL for any server that speaks OpenAI's protocol
    base_url: str | None = None  # of the server; null = the provider's own
    count: int = Field(default=10, gt=0)  # questions to propose


class Candidates(Frozen):
    """Values for the parts of a prompt, in addition to the task's own; the candidates are their combinations."""

    system: list[str | None] = Field(default=[])
    user: list[str] = Field(default=[])
    # Label -> word; or all labels in lower case, or with spaces for underscores
    words: list[Respelling | dict[str, str]] = Field(default=[])
    descriptions: list[dict[str, str]] = Field(default=[])
    order: list[Order] = Field(default=[])
    image: list[Image] = Field(default=[])
    answer: list[Answer] = Field(default=[])
    propose: Proposer | None = None

    def parts(self, task: Task) -> dict[str, list[Any]]:
        """Every part's values, each once, the task's own first. Raises InputError for one that does not fit the task.

        A respelling that gives two labels the same word is left out.
        """
        own = Wording.of(task)
        found = {}
        for key in Wording.model_fields:
            values = [getattr(own, key)]
            for value in getattr(self, key):
                respelled = key == "words" and isinstance(value, str)
                value = _respelled(task, value) if respelled else value
                try:
                    own.model_copy(update={key: value}).applied(task)
                except InputError:
                    if respelled:
                        continue
                    raise
                if value not in values:
                    values.append(value)
            found[key] = values
        return found


def _respelled(task: Task, how: Respelling) -> dict[str, str]:
    """A word for every label that changes."""
    words = {label: label.lower() if how == "lower" else label.replace("_", " ").strip() for label in task.labels}
    return {label: word for label, word in words.items() if word != label}


def candidates_file(name: str | None, task: Task) -> Path:
    """The file in configs/prompts of that name; by default the task's, if there is one, or default.yaml."""
    if name is not None:
        return FOLDER / f"{name}.yaml"
    own = FOLDER / f"{task.name}.yaml"
    return own if own.exists() else FOLDER / "default.yaml"


def load_candidates(file: Path, task: Task) -> Candidates:
    """Reads a file of candidates for `task`. Raises InputError."""
    if not file.exists():
        known = ", ".join(sorted(path.stem for path in FOLDER.glob("*.yaml")))
        raise InputError(f"prompt_search.candidates: there is no file {file}; {FOLDER} has {known or 'none'}")
    candidates = validate(Candidates, read_mapping(file), str(file))
    try:
        candidates.parts(task)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    return candidates
