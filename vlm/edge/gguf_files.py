"""Writes a fine-tuned LFM2-VL as GGUF: one file with the text model, one with the vision tower and the projector.

Names and keys are those of llama.cpp's converter (conversion/lfm2.py, build 11549), which is not a package and cannot
write 4-bit types. Weights are converted some rows at a time, so the memory needed is that of the largest tensor as it
is written and a little more.
"""

import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.config.errors import InputError
from vlm.edge import quantization, tokenizer
from vlm.edge.classifier import MODEL, PROJECTOR, RESAMPLING, NotExportable

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFWriter, TensorNameMap

_CHUNK = 2**22  # values that are converted at once
_ARCHITECTURE = {"": "lfm2_vl", "text_config": "lfm2", "vision_config": "siglip2_vision_model"}
# What llama.cpp computes whatever a config says: part of the config, key, value if it is absent, the value needed.
_FIXED = (
    ("text_config", "conv_bias", False, False),
    ("vision_config", "hidden_act", "gelu_pytorch_tanh", "gelu_pytorch_tanh"),
    ("", "projector_bias", True, True),
    ("", "projector_hidden_act", "gelu", "gelu"),
)


def require_supported(config: Mapping[str, Any]) -> None:
    """Raises NotExportable unless a config.json is of an LFM2-VL that llama.cpp computes as transformers does."""
    for part, needed in _ARCHITECTURE.items():
        found = ((config.get(part) or {}) if part else config).get("model_type")
        if found != needed:
            raise NotExportable(
                f"config.json: {_place(part, 'model_type')}: {found!r} cannot be exported for llama.cpp; LFM2-VL and "
                f"LFM2.5-VL can, which have {needed!r}"
            )
    for part, key, default, needed in _FIXED:
        value = (config[part] if part else config).get(key, default)
        if value != needed:
            raise NotExportable(
                f"config.json: {_place(part, key)}: {value!r} cannot be exported: llama.cpp computes {needed!r} only"
            )


def _place(part: str, key: str) -> str:
    return f"{part}.{key}" if part else key


def write(folder: Path, output: Path, text: str, vision: str) -> None:
    """Writes `output`/model.gguf and `output`/mmproj.gguf from a merged model's transformers folder.

    `text` is one of quantization.TEXT_TYPES and `vision` one of VISION_TYPES. Equal folders give equal bytes, whatever
    their names. Raises InputError for a model that llama.cpp does not run.
    """
    config, processor = _read(folder / "config.json"), _image_processor(folder)
    require_supported(config)
    with _weights(folder) as weights:
        text_tensors, vision_tensors = _text_tensors(weights, config), _vision_tensors(weights, config)
        layers = quantization.TextLayers(
            count=config["text_config"]["num_hidden_layers"],
            attention=[i for i, kind in enumerate(config["text_config"]["layer_types"]) if kind == "full_attention"],
            tied="output.weight" not in text_tensors,
        )
        text_type = partial(quantization.text_type, wanted=text, layers=layers)
        vision_type = partial(quantization.vision_type, wanted=vision)
        output.mkdir(parents=True, exist_ok=True)
        with _writer(output / MODEL, "lfm2") as writer:
            _add_text_keys(writer, config["text_config"], text_tensors, text)
            tokenizer.add(writer, folder, config["text_config"]["vocab_size"])
            _write_tensors(writer, text_tensors, text_type)
        with _writer(output / PROJECTOR, "clip") as writer:
            _add_vision_keys(writer, config, processor, vision)
            _write_tensors(writer, vision_tensors, vision_type)


@dataclass(frozen=True)
class _Tensor:
    """A tensor of a safetensors file, as it is to be stored."""

    source: str  # its name in the file, for messages
    stored: Any  # safetensors' slice: reads rows when it is indexed
    row: tuple[int, ...]  # the shape of a row, in the GGUF file
    arrange: Callable[["np.ndarray"], "np.ndarray"] | None = None  # (rows, ...) to (rows, *row), unless a reshape does

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.stored.get_shape()[0], *self.row)

    def rows(self, start: int, stop: int) -> "np.ndarray":
        """(stop - start, *row), float32."""
        import numpy as np

        values = self.stored[start:stop].float().numpy()
        return np.ascontiguousarray(self.arrange(values) if self.arrange else values.reshape(-1, *self.row))


@contextmanager
def _weights(folder: Path) -> Iterator[dict[str, Any]]:
    """Name -> safetensors' slice, for the weights of a model in one or several files. Nothing is read yet."""
    from safetensors import safe_open

    index = folder / "model.safetensors.index.json"
    files = {"model.safetensors"}
    if index.exists():
        files = set(_read(index)["weight_map"].values())
    with ExitStack() as stack:
        weights = {}
        for name in sorted(files):
            if not (folder / name).exists():
                raise InputError(f"{folder / name}: not found; the model's weights must be there as safetensors")
            file = stack.enter_context(safe_open(folder / name, "pt"))  # numpy has no bfloat16
            weights |= {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
        yield weights


def _text_tensors(weights: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, _Tensor]:
    """The text model's tensors under their names in GGUF, sorted."""
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LFM2, config["text_config"]["num_hidden_layers"])
    tensors = {}
    for source, stored in weights.items():
        shape = tuple(stored.get_shape())
        if source == "lm_head.weight":
            # Some checkpoints store the output layer although it is the embeddings.
            if not config.get("tie_word_embeddings", True):
                tensors[_name(names, source, source)] = _Tensor(source, stored, shape[1:])
        elif "language_model." in source:
            short = "model." + source.split("language_model.")[1].removeprefix("model.")
            # A convolution's weights are (channels, 1, kernel); llama.cpp wants (channels, kernel).
            row = shape[2:] if "conv.conv" in short else shape[1:]
            tensors[_name(names, short, source)] = _Tensor(source, stored, row)
    return dict(sorted(tensors.items()))


def _vision_tensors(weights: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, _Tensor]:
    """The vision tower's and the projector's tensors under their names in GGUF, sorted.

    transformers 5 has left `vision_model.` out of the tower's names; the Hub's checkpoints have it.
    """
    import gguf

    tower = config["vision_config"]
    # The map counts the projector's linear_1 and linear_2 as blocks too.
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, max(tower["num_hidden_layers"], 3))
    pixels = (tower["patch_size"], tower["patch_size"], tower.get("num_channels", 3))
    tensors = {}
    for source, stored in weights.items():
        short = source.removeprefix("model.")
        if short.startswith("vision_tower."):
            short = short.removeprefix("vision_tower.").removeprefix("vision_model.")
            if short.startswith("head."):
                continue  # pools the patches into one vector, which LFM2-VL does not use
            short = f"vision_tower.vision_model.{short}"
        elif not short.startswith("multi_modal_projector."):
            continue
        elif "layer_norm" in short and not config.get("projector_use_layernorm", True):
            continue  # llama.cpp would use it, for it is there; transformers goes by the config
        tensor = _Tensor(source, stored, tuple(stored.get_shape()[1:]))
        if short.endswith("patch_embedding.weight"):
            # A linear layer over (height, width, channels) in transformers, a convolution in llama.cpp.
            tensor = _Tensor(source, stored, (pixels[2], *pixels[:2]), partial(_channels_first, pixels=pixels))
        tensors[_name(names, short, source)] = tensor
    return dict(sorted(tensors.items()))


def _channels_first(values: "np.ndarray", pixels: tuple[int, int, int]) -> "np.ndarray":
    return values.reshape(-1, *pixels).transpose(0, 3, 1, 2)


def _name(names: "TensorNameMap", known: str, source: str) -> str:
    found = names.get_name(known, try_suffixes=(".weight", ".bias"))
    if found is None:
        raise InputError(f"model.safetensors: {source}: llama.cpp's LFM2-VL has no such weights")
    return found


def _add_text_keys(
    writer: "GGUFWriter", text: Mapping[str, Any], tensors: Mapping[str, _Tensor], file_type: str
) -> None:
    import gguf

    key_value_heads = [text["num_key_value_heads"] if kind != "conv" else 0 for kind in text["layer_types"]]
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_file_type(quantization.file_type(file_type))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(text["vocab_size"])
    writer.add_block_count(text["num_hidden_layers"])
    writer.add_context_length(text["max_position_embeddings"])
    writer.add_embedding_length(text["hidden_size"])
    # Not intermediate_size: block_auto_adjust_ff_dim makes another width of it.
    writer.add_feed_forward_length(tensors["blk.0.ffn_up.weight"].shape[0])
    writer.add_head_count(text["num_attention_heads"])
    writer.add_head_count_kv(key_value_heads)
    writer.add_rope_freq_base((text.get("rope_parameters") or text)["rope_theta"])
    writer.add_layer_norm_rms_eps(text["norm_eps"])
    writer.add_shortconv_l_cache(text["conv_L_cache"])


def _add_vision_keys(
    writer: "GGUFWriter", config: Mapping[str, Any], processor: Mapping[str, Any], file_type: str
) -> None:
    import gguf

    tower = config["vision_config"]
    writer.add_type(gguf.GGUFType.MMPROJ)
    writer.add_file_type(quantization.file_type(file_type))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(gguf.VisionProjectorType.LFM2)
    writer.add_vision_projection_dim(config["text_config"]["hidden_size"])
    writer.add_vision_projector_scale_factor(config["downsample_factor"])
    writer.add_vision_image_size(256)  # llama.cpp wants a size, and does not use it for pictures of any size
    writer.add_vision_patch_size(tower["patch_size"])
    writer.add_vision_embedding_length(tower["hidden_size"])
    writer.add_vision_feed_forward_length(tower["intermediate_size"])
    # Not fewer if the config has a `vision_feature_layer`: transformers uses the last layer's output whatever it says.
    writer.add_vision_block_count(tower["num_hidden_layers"])
    writer.add_vision_head_count(tower["num_attention_heads"])
    writer.add_vision_attention_layernorm_eps(tower["layer_norm_eps"])
    writer.add_vision_use_gelu(True)
    writer.add_vision_image_mean(processor["image_mean"])
    writer.add_vision_image_std(processor["image_std"])
    if (resample := processor.get("resample")) is not None:
        if resample not in RESAMPLING:
            raise InputError(f"processor_config.json: resample: {resample}: llama.cpp has {RESAMPLING} only")
        writer.add_string("clip.vision.image_resize_algo", RESAMPLING[resample])  # gguf 0.19 has no name for it


def _image_processor(folder: Path) -> Mapping[str, Any]:
    """What an image processor is configured to do: in a file of its own, or in the processor's since transformers 5."""
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).exists():
            values = _read(folder / name)
            values = values.get("image_processor", values)
            if "image_mean" in values:
                return values
    raise InputError(f"{folder}: neither processor_config.json nor preprocessor_config.json has image_mean")


def _read(file: Path) -> Any:
    if not file.exists():
        raise InputError(f"{file}: not found; a folder that transformers saved a model and its processor in is needed")
    return json.loads(file.read_text(encoding="utf-8"))


@contextmanager
def _writer(file: Path, architecture: str) -> Iterator["GGUFWriter"]:
    """A writer whose file is there under its name only when it is complete."""
    import gguf

    temporary = file.with_name(f".{file.name}.tmp")
    writer = gguf.GGUFWriter(temporary, architecture)
    try:
        yield writer
        writer.close()
        temporary.replace(file)
    except OSError as error:
        if error.errno is not None:
            raise
        # numpy says of a full disk only how much it could not write.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file)) from error
    finally:
        writer.close()
        temporary.unlink(missing_ok=True)


def _write_tensors(
    writer: "GGUFWriter", tensors: Mapping[str, _Tensor], type_of: Callable[[str, Sequence[int]], str]
) -> None:
    """Writes the header, the keys, and the tensors one after the other."""
    import gguf
    import numpy as np

    kinds = {name: type_of(name, tensor.shape) for name, tensor in tensors.items()}
    sizes = {
        name: prod(tensor.shape[:-1]) * quantization.row_bytes(tensor.shape[-1], kinds[name])
        for name, tensor in tensors.items()
    }
    for name, tensor in tensors.items():
        writer.add_tensor_info(
            name, tensor.shape, np.dtype(np.float32), sizes[name], gguf.GGMLQuantizationType[kinds[name]]
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in tensors.items():
        writer.write_tensor_data(_converted(tensor, kinds[name], sizes[name]))


def _converted(tensor: _Tensor, kind: str, size: int) -> "np.ndarray":
    """A tensor's bytes in the file, uint8. Each row is converted by itself, so the step changes no byte."""
    import numpy as np

    written = np.empty(size, np.uint8)
    count, step, place = tensor.shape[0], max(1, _CHUNK // max(1, prod(tensor.row))), 0
    for start in range(0, count, step):
        try:
            part = quantization.quantized(tensor.rows(start, min(start + step, count)), kind)
        except ValueError as error:
            raise InputError(f"model.safetensors: {tensor.source}: has {error}") from None
        written[place : place + part.nbytes] = part.reshape(-1)
        place += part.nbytes
    return written
