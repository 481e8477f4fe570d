"""Loads a model with its processor and, if given, what it was fine-tuned to: an adapter or a whole model."""

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vlm.config import hub, pins
from vlm.config.errors import InputError
from vlm.config.models import ModelConfig
from vlm.config.params import ImageParams

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, ProcessorMixin

_WEIGHTS = "model*.safetensors"
# In the folder of a model whose own weights were fine-tuned: the id and revision of the model that it was before.
BASE_FILE = "base_model.json"


def load(
    config: ModelConfig, image: ImageParams, adapter: str | None = None, merged: bool = True
) -> tuple["PreTrainedModel", "ProcessorMixin"]:
    """Returns the model in evaluation mode, on the GPU if there is one, else the CPU, and its processor, left-padding.

    An adapter is merged into the weights, which is faster, unless `merged` is false: then the model is a PeftModel.
    `adapter` can also be the folder of a model whose own weights were fine-tuned; that model is returned.

    Raises InputError for a pinned model that has changed, one that cannot be loaded or needs more than this GPU's
    memory, and for a folder that is neither an adapter nor such a model, or one of another base model.
    """
    config = pins.resolved_model(config)
    whole = adapter is not None and is_whole_model(adapter)
    if adapter is not None:
        _verify_adapter(adapter, config, whole)
    quiet_libraries()
    import torch
    from transformers import AutoModelForImageTextToText

    processor = load_processor(config, image)
    _require_memory(config, Path(adapter) if whole else require_files(config))
    with _one_line_errors(config):
        model = AutoModelForImageTextToText.from_pretrained(
            adapter if whole else config.folder or config.id,
            revision=None if whole else hub_revision(config),
            dtype=getattr(torch, config.dtype),
            attn_implementation=config.attention,
            use_safetensors=True,
            local_files_only=True,
        )
    model = model.to(device())  # before the merge, which is slow on a CPU
    if adapter is not None and not whole:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
        model = model.merge_and_unload() if merged else model
    return model.eval(), processor


def is_whole_model(adapter: str) -> bool:
    """Whether a fine-tune's folder holds a model of its own (finetune.method: full) and not an adapter."""
    return Path(adapter, BASE_FILE).exists()


def _verify_adapter(adapter: str, config: ModelConfig, whole: bool) -> None:
    file, key = Path(adapter, "adapter_config.json"), "base_model_name_or_path"
    if whole:
        file, key = Path(adapter, BASE_FILE), "id"
    if not file.exists():
        raise InputError(f"{adapter}: is no adapter, it has no {file.name}; `dvc repro finetune` makes one")
    base = json.loads(file.read_text(encoding="utf-8"))[key]
    if base != config.id:
        raise InputError(f"{file}: {key}: {base!r} is not the model {config.name}, {config.id!r}")


def load_processor(config: ModelConfig, image: ImageParams) -> "ProcessorMixin":
    """The model's processor with params.yaml's `image` applied. Raises InputError for settings that it lacks."""
    quiet_libraries()
    from transformers import AutoProcessor

    config = pins.resolved_model(config)
    pins.verify_model(config)
    require_files(config, weights=False)
    with _one_line_errors(config):
        processor = AutoProcessor.from_pretrained(
            config.folder or config.id, revision=hub_revision(config), local_files_only=True
        )
    processor.tokenizer.padding_side = "left"
    # Otherwise it is saved with an adapter and keeps others from loading the tokenizer.
    processor.tokenizer.init_kwargs.pop("local_files_only", None)
    wanted = {"max_image_tokens": image.max_tokens, "do_image_splitting": image.splitting}
    for attribute, value in wanted.items():
        if value is None:
            continue
        if not hasattr(processor.image_processor, attribute):
            key = "max_tokens" if attribute == "max_image_tokens" else "splitting"
            raise InputError(f"params.yaml: image.{key}: {config.id} has no such setting; use null")
        setattr(processor.image_processor, attribute, value)
    smallest = getattr(processor.image_processor, "min_image_tokens", None)
    if image.max_tokens is not None and smallest is not None and smallest >= image.max_tokens:
        # Equal bounds fail for pictures that are not square.
        processor.image_processor.min_image_tokens = image.max_tokens // 2
    return processor


def _require_memory(config: ModelConfig, folder: Path) -> None:
    """Raises InputError if the GPU has less memory than an evaluation needs: 1.5 times the weights in their dtype."""
    import torch

    if not torch.cuda.is_available():
        return
    needed = 1.5 * _parameters(folder) * getattr(torch, config.dtype).itemsize / 2**30
    available = torch.cuda.get_device_properties(0).total_memory / 2**30
    if available < needed:
        raise InputError(
            f"configs/models/{config.name}.yaml: id: {config.id!r} needs about {needed:.0f} GiB of GPU memory, and "
            f"{torch.cuda.get_device_name()} has {available:.0f}; use a larger GPU or a smaller model"
        )


def _parameters(folder: Path) -> int:
    """The number of parameters in a model's folder, from the headers of its files."""
    from math import prod

    from safetensors import safe_open

    index = folder / "model.safetensors.index.json"  # of a model in several files
    names = {"model.safetensors"}
    if index.exists():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    count = 0
    for name in sorted(names):
        with safe_open(folder / name, "pt") as file:
            count += sum(prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
    return count


def require_files(config: ModelConfig, weights: bool = True) -> Path:
    """Returns the model's folder: configuration, tokenizer, processor and, unless `weights` is false, weights.

    Downloads what is not yet in the cache. The weights are safetensors, and no code is downloaded. This is done before
    transformers looks for the files, because transformers neither waits for a busy Hub nor retries a broken connection.
    Raises InputError if the download fails or the folder holds no such model.
    """
    key = f"configs/models/{config.name}.yaml: id"
    folder = config.folder
    if folder is None:
        wanted = ["*.json", "*.txt", "*.jinja", "*.model", *([_WEIGHTS] if weights else [])]
        folder = hub.download(config.id, hub_revision(config), wanted, "model", key)
    if not (folder / "config.json").exists():
        raise InputError(f"{key}: {config.id!r} holds no model: it has no config.json")
    if weights and not list(folder.glob(_WEIGHTS)):
        raise InputError(
            f"{key}: {config.id!r} has no weights as safetensors (model.safetensors); other formats can run code when "
            "they are loaded, and are not"
        )
    return folder


@contextmanager
def _one_line_errors(config: ModelConfig) -> Iterator[None]:
    """Turns the libraries' exceptions for a repository that they cannot use into a one-line InputError."""
    try:
        yield
    except (OSError, ValueError, ImportError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"configs/models/{config.name}.yaml: id: {config.id!r} cannot be loaded as a model for text and pictures: "
            f"{reason}"
        ) from error


def image_token(model: "PreTrainedModel") -> int:
    """The id of the token that stands for a part of a picture in a prompt; some configurations use the older name."""
    return getattr(model.config, "image_token_id", None) or model.config.image_token_index


def hub_revision(config: ModelConfig) -> str | None:
    """The Hub commit to load; None for a local folder. Raises InputError, see pins.resolved_model."""
    return None if config.folder else pins.resolved_model(config).revision


def device() -> "torch.device":
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def quiet_libraries() -> None:
    """Keeps the Hugging Face libraries from printing messages that users of the pipeline cannot act on."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
