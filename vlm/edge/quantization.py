"""Which type each tensor of a GGUF file is stored as, and the conversion of float32 values to that type."""

import ctypes
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlm.config.errors import InputError

if TYPE_CHECKING:
    import numpy as np

TEXT_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0")
VISION_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0")

_FLOATS = ("F32", "F16", "BF16")
# The type of most tensors of a file, where the file's type is a mixture.
_MAIN = {"Q5_K_M": "Q5_K", "Q4_K_M": "Q4_K"}
# What llama-quantize stores instead where a row does not divide into the blocks of 256 values that a K type has.
_SMALL_BLOCKS = {"Q6_K": "Q8_0", "Q5_K": "Q5_1", "Q4_K": "Q5_0"}
_LAYER = re.compile(r"blk\.(\d+)\.")
_LARGEST_FLOAT16 = 65504.0


@dataclass(frozen=True)
class TextLayers:
    """What the types of a text model's tensors depend on, apart from their names and widths."""

    count: int
    attention: Sequence[int]  # the layers with attention, ascending; the others have a convolution
    tied: bool  # whether the embeddings are the output layer too


def file_type(wanted: str) -> int:
    """The number in `general.file_type` that stands for one of TEXT_TYPES or VISION_TYPES."""
    from gguf import LlamaFileType

    return LlamaFileType["ALL_F32" if wanted == "F32" else f"MOSTLY_{wanted}"].value


def text_type(name: str, shape: Sequence[int], wanted: str, layers: TextLayers) -> str:
    """The type of a text model's tensor in a file of type `wanted`, one of TEXT_TYPES. `shape` is (rows, width).

    These are the rules of llama-quantize without an importance matrix for the architecture lfm2 (llama.cpp,
    src/llama-quant.cpp, build 11549), none left out: the output layer gets Q6_K in every file below Q8_0, and Q4_K_M
    and Q5_K_M store the value projections and the feed-forward outputs of about half of the layers as Q6_K. LFM2's
    convolution layers have neither rule, so their projections keep the main type.
    """
    if len(shape) < 2 or name.endswith("_norm.weight") or "shortconv.conv" in name:
        return "F32"
    if wanted in _FLOATS:
        return wanted
    chosen = _MAIN.get(wanted, wanted)
    if name == "output.weight" or (name == "token_embd.weight" and layers.tied):
        chosen = "Q8_0" if wanted == "Q8_0" else "Q6_K"
    elif wanted in _MAIN and _needs_more_bits(name, layers):
        chosen = "Q6_K"
    return _that_divides(shape[-1], chosen)


def vision_type(name: str, shape: Sequence[int], wanted: str) -> str:
    """The type of a tensor of the vision tower or projector in a file of type `wanted`, one of VISION_TYPES.

    These are the rules of llama.cpp's converter, with one exception: the patch embedding, whose rows of 16 pixels
    cannot be quantised, is F16 in a quantised file, as it is in an F16 file, and not F32.
    """
    if len(shape) < 2 or name == "v.position_embd.weight":
        return "F32"
    if name == "v.patch_embd.weight":
        return "F32" if wanted in ("F32", "BF16") else "F16"
    return _that_divides(shape[-1], wanted)


def quantized(values: "np.ndarray", kind: str) -> "np.ndarray":
    """Rows of float32, (..., width), in a type of GGUF: (..., bytes of a row), uint8.

    Raises ValueError for values that the type cannot hold, InputError if the type needs xllamacpp and that is missing.
    """
    import gguf
    import numpy as np

    limit = np.finfo(np.float32).max if kind in ("F32", "BF16") else _LARGEST_FLOAT16
    if not np.abs(values).max() <= limit:  # NaN is not <= anything
        raise ValueError(f"values that {kind} cannot hold (not finite, or beyond {limit:.6g})")
    try:
        return gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind]).view(np.uint8)
    except NotImplementedError:  # the K types, which gguf only reads
        return _quantized_by_ggml(values, kind)


def row_bytes(width: int, kind: str) -> int:
    """How many bytes a row of `width` values takes."""
    import gguf

    return gguf.quants.quant_shape_to_byte_shape((width,), gguf.GGMLQuantizationType[kind])[0]


def _needs_more_bits(name: str, layers: TextLayers) -> bool:
    """Whether a Q4_K_M or Q5_K_M file stores a tensor as Q6_K.

    It does for two kinds of tensors: in the first and the last eighth of the layers that have the kind, and in every
    third layer between them.
    """
    found = _LAYER.match(name)
    if found is None:
        return False
    layer = int(found[1])
    if name.endswith("ffn_down.weight"):
        place, count = layer, layers.count
    elif name.endswith("attn_v.weight"):
        place, count = layers.attention.index(layer), len(layers.attention)
    else:
        return False
    return place < count // 8 or place >= 7 * count // 8 or (place - count // 8) % 3 == 2


def _that_divides(width: int, kind: str) -> str:
    """`kind`, or the type that is stored instead where rows of `width` values do not divide into its blocks."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    for candidate in (kind, _SMALL_BLOCKS.get(kind)):
        if candidate is not None and width % GGML_QUANT_SIZES[GGMLQuantizationType[candidate]][0] == 0:
            return candidate
    return "F16"


def _quantized_by_ggml(values: "np.ndarray", kind: str) -> "np.ndarray":
    import gguf
    import numpy as np

    values = np.ascontiguousarray(values, np.float32)
    width = values.shape[-1]
    written = np.empty((*values.shape[:-1], row_bytes(width, kind)), np.uint8)
    size = _ggml(kind).ggml_quantize_chunk(
        gguf.GGMLQuantizationType[kind].value,
        values.ctypes.data,
        written.ctypes.data,
        0,
        values.size // width,
        width,
        None,
    )
    if size != written.nbytes:
        raise RuntimeError(f"ggml_quantize_chunk wrote {size} bytes of {kind}, not {written.nbytes}")
    return written


def _ggml(kind: str) -> ctypes.CDLL:
    """ggml as xllamacpp's extension module exports it."""
    try:
        from xllamacpp import xllamacpp
    except ImportError as error:
        raise InputError(
            f"tensors of type {kind} are written with xllamacpp, which is not installed or does not load here "
            f"({error}): install it with `uv sync`, or set export.text in params.yaml to F16 or Q8_0"
        ) from None
    library = ctypes.CDLL(xllamacpp.__file__)
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,  # ggml_type
        ctypes.c_void_p,  # const float * src
        ctypes.c_void_p,  # void * dst
        ctypes.c_int64,  # first value
        ctypes.c_int64,  # rows
        ctypes.c_int64,  # values in a row
        ctypes.c_void_p,  # const float * imatrix
    ]
    return library
