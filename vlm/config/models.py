"""configs/models/<name>.yaml: which model it is, and what is special about it."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from vlm.config.yaml_files import Frozen, named_file, validate


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"should be a regular expression: {error}") from None
    return pattern


Pattern = Annotated[str, AfterValidator(_compiles)]


class ModelOptions(Frozen):
    """The block `options` of a model's file: how the model is loaded and trained. Every key is optional.

    It is a block because DVC stops when a key that it tracks is missing: it tracks the whole block. Keys outside the
    block do not change any result.
    """

    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    attention: Literal["eager", "sdpa", "flash_attention_2"] = "sdpa"
    learning_rate: float = Field(default=0.0002, gt=0)
    # LoRA's presets: a pattern over module names for each part. A part without one is derived from the module tree.
    lora_modules: dict[Literal["language", "projector", "vision"], Pattern] = Field(default={})


class _Model(Frozen):
    """The keys outside `options`."""

    name: str
    id: str = Field(min_length=1)  # Hub id, or a folder
    revision: str | None = None  # Hub commit, or sha256:... of a folder; written by `python -m vlm pin`
    runs_on_cpu: bool = False
    gpu: str = "L4"  # on Modal, unless params.yaml's modal.gpu says otherwise; one of configs/gpus.yaml


class _ModelFile(_Model):
    options: ModelOptions


class ModelConfig(_Model, ModelOptions):
    """A model's file, with the keys of its block `options` beside the others."""

    @property
    def folder(self) -> Path | None:
        """The model's folder if it is one on this machine; None if it is a repository of the Hub."""
        return Path(self.id) if Path(self.id).is_dir() else None


def load_model(name: str) -> ModelConfig:
    """Reads configs/models/<name>.yaml. Raises InputError."""
    values, path = named_file(name, "models")
    values.setdefault("options", {})  # DVC wants the block, other commands can do without it
    file = validate(_ModelFile, values | {"options": values["options"] or {}}, path)
    return ModelConfig(**file.model_dump(exclude={"options"}), **file.options.model_dump())
