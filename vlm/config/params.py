"""params.yaml and the files of the chosen task and model, as one validated, frozen object."""

import math
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BeforeValidator, Field, field_validator

from vlm.config import gpus
from vlm.config.errors import InputError
from vlm.config.models import ModelConfig, Pattern, load_model
from vlm.config.task import Task, load_task
from vlm.config.yaml_files import Frozen, read_mapping, validate

Compute = Literal["auto", "local", "modal"]
Prior = Literal["none", "batch", "blank"]
Calibrate = Literal["none", "temperature", "bias"]
GradientCheckpointing = Literal["auto", True, False]
Loss = Literal["tokens", "labels", "both"]

T = TypeVar("T")


class PrepareParams(Frozen):
    train: int | None = Field(default=None, gt=0)
    validation: int | None = Field(default=None, gt=0)
    test: int | None = Field(default=None, gt=0)


class ImageParams(Frozen):
    max_tokens: int | None = Field(default=None, gt=0, le=32_768)  # LFM2-VL's context; most models use 64 to 2,000
    splitting: bool | None = None


class EvaluationParams(Frozen):
    batch_size: int = Field(gt=0)
    raw_batch_size: int = Field(gt=0)
    max_new_tokens: int = Field(gt=0)


class StructuredEvalParams(Frozen):
    engine: Literal["posterior", "outlines"]
    prior: Prior
    prior_samples: int = Field(gt=0)
    outlines_samples: int = Field(ge=0)
    calibrate: Calibrate


class LoraParams(Frozen):
    modules: Pattern | None = Field(min_length=1)
    r: int = Field(gt=0)
    alpha: int = Field(gt=0)
    dropout: float = Field(ge=0, lt=1)
    rslora: bool
    dora: bool
    bias: Literal["none", "all", "lora_only"]


class LearningRateScale(Frozen):
    """A factor on the learning rate for each part of the model; 0 freezes the part, with LoRA its adapter."""

    language: float = Field(ge=0)
    projector: float = Field(ge=0)
    vision: float = Field(ge=0)


def _learning_rate(value: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is None or value == "auto" or (number and 0 < value < math.inf):
        return float(value) if number else value
    raise ValueError("should be a number above 0, auto or null")


class FinetuneParams(Frozen):
    method: Literal["lora", "full"]
    loss: Loss
    epochs: float | None = Field(gt=0)
    learning_rate: Annotated[float | Literal["auto"] | None, BeforeValidator(_learning_rate)]
    lr_scale: LearningRateScale
    optimizer: Literal["adamw", "adamw_8bit"]
    batch_size: int = Field(gt=0)
    micro_batch: int | None = Field(gt=0)
    gradient_checkpointing: GradientCheckpointing
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
    prior: Prior

    @property
    def folder(self) -> str:
        """The adapter's folder."""
        return {"best": "models/adapter", "last": "models/adapter_last"}[self.adapter]


Corruption = Literal[
    "contrast", "gaussian_noise", "impulse_noise", "jpeg_compression", "motion_blur", "pixelate", "spatter"
]


def _each_once(values: list[T]) -> list[T]:
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"lists {value!r} twice; list everything once")
    return values


class RobustnessParams(Frozen):
    enabled: bool
    samples: int | None = Field(gt=0)
    severities: Annotated[list[Literal[1, 2, 3, 4, 5]], Field(min_length=1), AfterValidator(_each_once)]
    corruptions: Annotated[list[Corruption], Field(min_length=1), AfterValidator(_each_once)]


class PromptSearchParams(Frozen):
    enabled: bool
    candidates: str | None = Field(min_length=1)
    sample: int = Field(gt=1)
    passes: float = Field(gt=0)


# Types of GGUF files; vlm/edge/quantization.py can write them.
TextType = Literal["F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0"]
VisionType = Literal["F32", "F16", "BF16", "Q8_0", "Q4_0"]


class ExportParams(Frozen):
    text: TextType
    vision: VisionType
    samples: int | None = Field(gt=0)
    sweep: Annotated[list[str], AfterValidator(_each_once)]

    @field_validator("sweep")
    @classmethod
    def _known_types(cls, sweep: list[str]) -> list[str]:
        for entry in sweep:
            text, plus, vision = entry.partition("+")
            for type_, known in ((text, TextType), (vision, VisionType)):
                if type_ not in get_args(known) and (plus or type_):
                    raise ValueError(f"{type_!r} should be one of {', '.join(get_args(known))}")
        return sweep

    @property
    def swept(self) -> list[tuple[str, str]]:
        """(text, vision) of each entry of `sweep`; a text type alone stands for one with `vision`."""
        pairs = [entry.partition("+") for entry in self.sweep]
        return [(text, vision or self.vision) for text, _, vision in pairs]


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
    robustness: RobustnessParams
    prompt_search: PromptSearchParams
    export: ExportParams


def load_params(path: str = "params.yaml") -> Params:
    """Reads params.yaml and the two files that it names. Raises InputError for the first error."""
    values = read_mapping(path)
    values["model"] = load_model(_name(values, "model", path))
    values["task"] = load_task(_name(values, "task", path))
    params = validate(Params, values, path)
    gpus.gpu_of(params.model, params.modal, several=True)  # reports a typo in modal.gpu even if nothing runs on Modal
    finetune = params.finetune
    if finetune.micro_batch and finetune.batch_size % finetune.micro_batch:
        raise InputError(
            f"{path}: finetune.micro_batch: {finetune.micro_batch} does not divide finetune.batch_size, "
            f"{finetune.batch_size}"
        )
    if not any(finetune.lr_scale.model_dump().values()):
        raise InputError(f"{path}: finetune.lr_scale: 0 for every part trains nothing; set at least one above 0")
    return params


def _name(values: dict[str, Any], key: str, path: str) -> str:
    if key not in values:
        raise InputError(f"{path}: {key}: is missing; add it")
    name = values[key]
    if not isinstance(name, str) or not name:
        raise InputError(f"{path}: {key}: {name!r} should be the name of a file in configs/{key}s, without .yaml")
    return name
