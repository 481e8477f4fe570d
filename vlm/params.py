"""params.yaml, the chosen task's file and the chosen model's file, as one validated, frozen object."""

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field, ValidationError
from ruamel.yaml import YAML, YAMLError

from vlm.errors import InputError
from vlm.task import Frozen, Task


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"should be a regular expression: {error}") from None
    return pattern


Compute = Literal["auto", "local", "modal"]
Pattern = Annotated[str, AfterValidator(_compiles)]


class ModelOptions(Frozen):
    """The block `options` of a model's file, every key of it optional: how a model is loaded and trained.

    In one block, for DVC tracks only keys that are there: it tracks the block, and what is beside it changes no result.
    """

    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    attention: Literal["eager", "sdpa", "flash_attention_2"] = "sdpa"
    learning_rate: float = Field(default=0.0002, gt=0)
    # Of LoRA's presets: a pattern over module names for each part; a part that is missing is read off the module tree.
    lora_modules: dict[Literal["language", "projector", "vision"], Pattern] = Field(default={})


class _Model(Frozen):
    """What is beside `options` in a model's file."""

    name: str
    id: str = Field(min_length=1)  # Hub id, or a folder
    revision: str | None = None  # Hub commit, or sha256:... of a folder; written by `python -m vlm.pin`
    runs_on_cpu: bool = False
    gpu: str = "L4"  # on Modal, where params.yaml's modal.gpu does not say otherwise; one of configs/gpus.yaml
    memory_gib: float | None = Field(default=None, gt=0)  # estimate of what it takes to evaluate it on a GPU


class _ModelFile(_Model):
    options: ModelOptions


class ModelConfig(_Model, ModelOptions):
    """configs/models/<name>.yaml, with its `options` taken out of their block: a model and what is special about it."""

    @property
    def folder(self) -> Path | None:
        """The model's folder, if it is one on this machine rather than a repository of the Hub."""
        return Path(self.id) if Path(self.id).is_dir() else None


class PrepareParams(Frozen):
    train: int | None = Field(default=None, gt=0)
    validation: int | None = Field(default=None, gt=0)
    test: int | None = Field(default=None, gt=0)


class ImageParams(Frozen):
    max_tokens: int | None = Field(default=None, gt=0)
    splitting: bool | None = None


class EvaluationParams(Frozen):
    batch_size: int = Field(gt=0)
    max_new_tokens: int = Field(gt=0)


class StructuredEvalParams(Frozen):
    engine: Literal["posterior", "outlines"]
    outlines_samples: int = Field(ge=0)
    calibrate: bool


class LoraParams(Frozen):
    modules: Pattern = Field(min_length=1)
    r: int = Field(gt=0)
    alpha: int = Field(gt=0)
    dropout: float = Field(ge=0, lt=1)
    rslora: bool
    dora: bool
    bias: Literal["none", "all", "lora_only"]


class LearningRateScale(Frozen):
    """Factors of the learning rate, by part of the model; 0 freezes a part's adapter."""

    language: float = Field(ge=0)
    projector: float = Field(ge=0)
    vision: float = Field(ge=0)


class FinetuneParams(Frozen):
    epochs: float = Field(gt=0)
    learning_rate: float | None = Field(gt=0)
    lr_scale: LearningRateScale
    batch_size: int = Field(gt=0)
    micro_batch: int | None = Field(gt=0)
    eval_steps: int = Field(gt=0)
    eval_samples: int = Field(gt=0)
    select_by: Literal["accuracy", "eval_loss"]
    patience: int | None = Field(gt=0)
    balance: Literal["none", "sqrt", "uniform"]
    augment: Literal["none", "light", "strong"]
    cache_image_features: float = Field(ge=0)
    track_with: list[Literal["dvclive", "wandb"]]
    lora: LoraParams


class FinalEvalParams(Frozen):
    adapter: Literal["best", "last"]


class ModalParams(Frozen):
    gpu: str | None
    containers: int = Field(gt=0)
    max_dollars: float | None = Field(gt=0)
    timeout: float = Field(gt=0, le=24)  # hours
    region: str | None


class Params(Frozen):
    model: ModelConfig
    task: Task
    seed: int = Field(ge=0, lt=2**32)
    compute: Compute
    modal: ModalParams
    prepare: PrepareParams
    image: ImageParams
    evaluation: EvaluationParams
    structured_eval: StructuredEvalParams
    finetune: FinetuneParams
    final_eval: FinalEvalParams


def load_params(path: str = "params.yaml") -> Params:
    """Reads params.yaml and the two files it names. Raises InputError for the first thing that is wrong."""
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: should be a mapping of keys to values")
    values["model"] = load_model(_name(values, "model", path))
    values["task"] = load_task(_name(values, "task", path))
    params = _validate(Params, values, path)
    finetune = params.finetune
    if finetune.micro_batch and finetune.batch_size % finetune.micro_batch:
        raise InputError(
            f"{path}: finetune.micro_batch: {finetune.micro_batch} does not divide finetune.batch_size, "
            f"{finetune.batch_size}"
        )
    return params


def load_model(name: str) -> ModelConfig:
    values, path = _named_file(name, "models")
    values.setdefault("options", {})  # then DVC would not run it, for it tracks the block; other commands can
    file = _validate(_ModelFile, values | {"options": values["options"] or {}}, path)
    return ModelConfig(**file.model_dump(exclude={"options"}), **file.options.model_dump())


def load_task(name: str) -> Task:
    return _validate(Task, *_named_file(name, "tasks"))


def read_yaml(path: str | Path) -> Any:
    """YAML 1.2, read as DVC reads it (`no` is a string, 5e-4 a number). Raises InputError."""
    try:
        return YAML(typ="safe", pure=True).load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: should be text in UTF-8") from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise InputError(f"{path}: {where}{getattr(error, 'problem', None) or 'is not YAML'}") from None


def _name(values: dict, key: str, path: str) -> str:
    if key not in values:
        raise InputError(f"{path}: {key}: is missing; add it")
    name = values[key]
    if not isinstance(name, str) or not name:
        raise InputError(f"{path}: {key}: {name!r} should be the name of a file in configs/{key}s, without .yaml")
    return name


def _named_file(name: str, kind: str) -> tuple[dict, str]:
    path = Path("configs", kind, f"{name}.yaml")
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise InputError(f"params.yaml: {kind[:-1]}: {name!r} has no file {path}; there are {known}")
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: should be a mapping of keys to values")
    if "name" in values:
        raise InputError(f"{path}: name: there is no such key; the file's own name is the name")
    return {**values, "name": name}, str(path)


def _validate(kind: type[Frozen], values: dict, path: str) -> Any:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{path}: {_first(error, kind)}") from None


# pydantic's words for these are Python's; a reader of YAML knows others.
_EXPECTED = {
    "model_type": "should be a mapping of keys to values",
    "dict_type": "should be a mapping of keys to values",
    "tuple_type": "should be a list",
    "list_type": "should be a list",
    "too_short": "should have at least one entry",
    "string_type": "should be text; put it in quotes",
    "string_too_short": "should not be empty",
    "bool_type": "should be true or false",
    "int_type": "should be a whole number",
    "float_type": "should be a number",
}


def _first(error: ValidationError, kind: type[Frozen]) -> str:
    """The first complaint of pydantic as `key: value, what would be right`."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"] if part != "[key]")
    if first["type"] == "missing":
        return f"{key}: is missing; add it"
    if first["type"] == "extra_forbidden":
        return f"{key}: there is no such key; the keys here are {', '.join(_keys(kind, first['loc'][:-1]))}"
    message = _EXPECTED.get(first["type"], first["msg"].removeprefix("Value error, ").removeprefix("Input "))
    if first["type"] == "value_error" and isinstance(first["input"], dict):
        return f"{key}: {message}" if key else message  # about several keys of a block, not its whole value
    value = first["input"]
    shown = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)  # null and true, as in YAML
    return f"{key}: {shown} {message}"


def _keys(kind: Any, location: tuple[int | str, ...]) -> list[str]:
    """The keys of the block at `location`."""
    for part in location:
        annotation = kind.model_fields[part].annotation
        kind = next(choice for choice in (annotation, *get_args(annotation)) if hasattr(choice, "model_fields"))
    return [field.alias or key for key, field in kind.model_fields.items() if key != "name"]
