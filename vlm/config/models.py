"""configs/models/<name>.yaml: a model's id and revision, where it runs, and how it is loaded and trained."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from vlm.config.folders import in_repository
from vlm.config.yaml_files import Frozen, named_file, validate


def _valid_pattern(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"should be a regular expression: {error}") from None
    return pattern


Pattern = Annotated[str, AfterValidator(_valid_pattern)]


class ModelOptions(Frozen):
    """The block `options` of a model's file: how the model is loaded and trained. Every key is optional.

    These keys form a block because DVC fails if a key that it tracks is missing; it tracks the block as a whole. Keys
    outside the block, except for id and revision, do not change any result.
    """

    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    attention: Literal["eager", "sdpa", "flash_attention_2"] = "sdpa"
    learning_rate: float = Field(default=0.0002, gt=0)
    lora_parts: Pattern = "language+projector"  # for params.yaml's finetune.lora.modules: null
    # LoRA presets: for each part, a pattern that module names match. Without one, the module tree determines the part.
    lora_modules: dict[Literal["language", "projector", "vision"], Pattern] = Field(default={})


class _Model(Frozen):
    """The keys outside `options`."""

    name: str
    id: str = Field(min_length=1)  # Hub id or folder
    revision: str | None = None  # Hub revision, or sha256:... of a folder; written by `python -m vlm pin`
    runs_on_cpu: bool = False
    gpu: str = "L4"  # on Modal, unless params.yaml's modal.gpu says otherwise; one of configs/gpus.yaml


class _ModelFile(_Model):
    options: ModelOptions


class ModelConfig(_Model, ModelOptions):
    """The contents of a model's file, with the keys of its block `options` at the top level."""

    @property
    def folder(self) -> Path | None:
        """The model's folder if `id` is one on this machine; None for a repository on the Hub.

        It is relative to the repository even if DVC runs in a copy of it (`dvc exp run --temp`).
        """
        path = in_repository(self.id)
        return path if path.is_dir() else None


def load_model(name: str) -> ModelConfig:
    """Reads configs/models/<name>.yaml. Raises InputError."""
    values, path = named_file(name, "models")
    values.setdefault("options", {})  # the stages need the block because of DVC; other commands do not
    file = validate(_ModelFile, values | {"options": values["options"] or {}}, path)
    return ModelConfig(**file.model_dump(exclude={"options"}), **file.options.model_dump())
