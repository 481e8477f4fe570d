"""classifier.json: what an app has to know about an exported classifier and a GGUF file does not hold."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, FiniteFloat, model_validator

from vlm.config.errors import InputError
from vlm.config.params import Params
from vlm.config.yaml_files import Frozen, validate

if TYPE_CHECKING:
    import numpy as np
    from transformers import ProcessorMixin

NAME = "classifier.json"
MODEL, PROJECTOR = "model.gguf", "mmproj.gguf"

# JSON has lists where these fields have tuples
Texts = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
Ids = Annotated[tuple[int, ...], Field(strict=False, min_length=1)]
Offsets = Annotated[tuple[FiniteFloat, ...], Field(strict=False)]

RESAMPLING = {1: "lanczos", 2: "bilinear", 3: "bicubic"}  # PIL's numbers, llama.cpp's names


class NotExportable(InputError):
    """The model, or a label of the task, cannot be exported for llama.cpp; the rest of the pipeline is not affected."""


class Prompt(Frozen):
    """The text before and after the picture, with its control tokens, a BOS token among them if there is to be one.

    The tokens around the picture (<|image_start|>, <|image_end|>) are not in it: llama.cpp adds them.
    """

    before: str
    after: str


class ImageLimits(Frozen):
    """What the processor's resizing of a picture needs, see resizing.py."""

    multiple: int = Field(gt=0)  # both sides of a resized picture are multiples of so many pixels
    min_tokens: int = Field(gt=0)  # image tokens, one for each square of `multiple` pixels
    max_tokens: int = Field(gt=0)
    tolerance: float = Field(gt=0)  # llama.cpp cuts pictures into tiles above this many times max_tokens
    resample: Literal["bilinear", "bicubic", "lanczos"]


class Tokens(Frozen):
    """Numbers of tokens, with which an app can check its prompt, and the tokens of the answers, end-of-turn included.

    A prompt has `before` + `around_image` + the picture's image tokens + `after` tokens.
    """

    before: int
    after: int
    around_image: int  # tokens at the beginning and the end of the picture
    answers: Annotated[tuple[Ids, ...], Field(strict=False, min_length=1)]


class Model(Frozen):
    id: str
    revision: str | None
    adapter_sha256: str


class File(Frozen):
    type: str  # as in params.yaml: Q4_0, ...
    bytes: int
    sha256: str


class Classifier(Frozen):
    """The contents of classifier.json. `answers` are the texts that name the `labels`, in the same order.

    `offsets` correct the label prior (vlm/evaluation/prior.py): one number for each label, which is added to the
    logarithm of the label's probability before the probabilities are normalised. Empty: there is no correction.
    """

    version: Literal[1]
    task: str
    labels: Texts
    answers: Texts
    offsets: Offsets = ()
    prompt: Prompt
    image: ImageLimits
    tokens: Tokens
    model: Model
    files: dict[str, File]

    @model_validator(mode="after")
    def _an_offset_for_each_label(self) -> "Classifier":
        if self.offsets and len(self.offsets) != len(self.labels):
            raise ValueError(f"offsets: has {len(self.offsets)} numbers for {len(self.labels)} labels")
        return self

    @classmethod
    def of(
        cls, params: Params, processor: "ProcessorMixin", adapter_sha256: str, offsets: Sequence[float] = ()
    ) -> "Classifier":
        """The classifier of a task and a fine-tuned LFM2-VL, without files yet (`with_files`). Raises InputError."""
        from vlm.evaluation.trie import answer_tokens
        from vlm.models import chat, encoding

        task, images = params.task, processor.image_processor
        before, after = chat.prompt(processor, task).split(processor.image_token)
        multiple = images.encoder_patch_size * images.downsample_factor
        ids = encoding.blank(processor, task, (multiple, multiple))["input_ids"][0].tolist()
        first = ids.index(processor.image_token_id)
        last = len(ids) - ids[::-1].index(processor.image_token_id)
        counts = [len(processor.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (before, after)]
        return cls(
            version=1,
            task=task.name,
            labels=task.labels,
            answers=tuple(map(task.answer, task.labels)),
            offsets=tuple(offsets),
            prompt=Prompt(before=before, after=after),
            image=ImageLimits(
                multiple=multiple,
                min_tokens=images.min_image_tokens,
                max_tokens=images.max_image_tokens,
                tolerance=float(images.max_pixels_tolerance),
                resample=_resampling(images.resample),
            ),
            tokens=Tokens(
                before=counts[0],
                after=counts[1],
                around_image=first + len(ids) - last - sum(counts),
                answers=tuple(map(tuple, answer_tokens(processor, task))),
            ),
            model=Model(id=params.model.id, revision=params.model.revision, adapter_sha256=adapter_sha256),
            files={},
        )

    def with_files(self, folder: Path, types: tuple[str, str]) -> "Classifier":
        """The same with the sizes and hashes of the two GGUF files in `folder`, which have the types (text, vision)."""
        files = {name: _file(folder / name, type_) for name, type_ in zip((MODEL, PROJECTOR), types, strict=True)}
        return self.model_copy(update={"files": files})

    def save(self, folder: Path) -> None:
        """Writes classifier.json into a folder, all of it or nothing."""
        temporary = folder / f".{NAME}.tmp"
        text = json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(folder / NAME)

    @classmethod
    def load(cls, folder: Path) -> "Classifier":
        """Reads a folder's classifier.json. Raises InputError if there is none, or it is no such file."""
        path = folder / NAME
        try:
            values: Any = json.loads(path.read_text(encoding="utf-8"))
        except OSError:
            raise InputError(f"{path}: cannot be read; `dvc repro export` writes it, `dvc pull` fetches it") from None
        except ValueError:
            raise InputError(f"{path}: is not JSON; export the classifier again") from None
        if not isinstance(values, Mapping):
            raise InputError(f"{path}: should be a mapping of keys to values; export the classifier again")
        return validate(cls, dict(values), str(path))

    def corrected(self, probabilities: "np.ndarray") -> "np.ndarray":
        """(labels,): the model's own probabilities for a picture, with the label prior corrected if it is to be."""
        from vlm.evaluation import prior

        return prior.apply(probabilities[None], self.offsets)[0] if self.offsets else probabilities

    def grammar(self) -> str:
        """The text of labels.gbnf: a grammar, in llama.cpp's notation, of which exactly the answers are sentences."""
        return grammar(self.answers)


def grammar(sentences: Sequence[str]) -> str:
    """A grammar, in llama.cpp's notation, of which exactly these texts are sentences."""
    return "root ::= " + " |\n  ".join(map(_quoted, sentences)) + "\n"


def _resampling(number: int) -> str:
    """The name of one of PIL's filters. Raises InputError for one that is not used for making pictures smaller."""
    if int(number) not in RESAMPLING:
        raise InputError(
            f"processor_config.json: resample: {int(number)} cannot be exported; the known filters are {RESAMPLING}"
        )
    return RESAMPLING[int(number)]


def _file(path: Path, type_: str) -> File:
    with path.open("rb") as content:
        return File(type=type_, bytes=path.stat().st_size, sha256=hashlib.file_digest(content, "sha256").hexdigest())


def _quoted(text: str) -> str:
    """A literal of llama.cpp's grammars."""
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return '"' + "".join(escapes.get(character, character) for character in text) + '"'
