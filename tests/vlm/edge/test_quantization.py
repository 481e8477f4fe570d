from typing import get_args

import numpy as np
import pytest

from vlm.config import params
from vlm.edge import quantization
from vlm.edge.quantization import TextLayers

THE_450M = TextLayers(count=16, attention=(2, 5, 8, 10, 12, 14), tied=True)
WIDE = (1024, 1024)


@pytest.mark.parametrize(("wanted", "main"), [("Q4_K_M", "Q4_K"), ("Q5_K_M", "Q5_K")])
def test_a_mixture_has_more_bits_where_llama_quantize_has_them(wanted, main):
    """Worked out by hand from `use_more_bits` in llama-quant.cpp, whose divisions are of whole numbers."""

    def layers_with_more(name: str, layers) -> list[int]:
        kinds = {i: quantization.text_type(f"blk.{i}.{name}.weight", WIDE, wanted, THE_450M) for i in layers}
        assert set(kinds.values()) == {main, "Q6_K"}
        return [layer for layer, kind in kinds.items() if kind == "Q6_K"]

    assert layers_with_more("ffn_down", range(16)) == [0, 1, 4, 7, 10, 13, 14, 15]
    assert layers_with_more("attn_v", THE_450M.attention) == [8, 14]  # the third and the last of six
    for name in ("ffn_up", "ffn_gate", "attn_q", "attn_k", "attn_output", "shortconv.in_proj", "shortconv.out_proj"):
        assert quantization.text_type(f"blk.14.{name}.weight", WIDE, wanted, THE_450M) == main


@pytest.mark.parametrize(
    ("name", "tied", "wanted", "stored"),
    [
        ("token_embd.weight", True, "Q4_0", "Q6_K"),
        ("token_embd.weight", True, "Q4_K_M", "Q6_K"),
        ("token_embd.weight", True, "Q8_0", "Q8_0"),
        ("token_embd.weight", False, "Q4_0", "Q4_0"),
        ("token_embd.weight", False, "Q5_K_M", "Q5_K"),
        ("output.weight", False, "Q4_0", "Q6_K"),
        ("output.weight", False, "F16", "F16"),
        ("blk.0.ffn_down.weight", True, "Q4_0", "Q4_0"),
        ("blk.0.attn_q_norm.weight", True, "Q4_0", "F32"),
        ("blk.0.shortconv.conv.weight", True, "F16", "F32"),
    ],
)
def test_the_output_layer_has_more_bits_and_small_tensors_are_float32(name, tied, wanted, stored):
    layers = TextLayers(THE_450M.count, THE_450M.attention, tied)
    assert quantization.text_type(name, WIDE, wanted, layers) == stored


@pytest.mark.parametrize(
    ("width", "wanted", "stored"),
    [
        (128, "Q4_K_M", "Q5_0"),
        (128, "Q5_K_M", "Q5_1"),
        (128, "Q6_K", "Q8_0"),
        (48, "Q4_K_M", "F16"),
        (48, "Q4_0", "F16"),
    ],
)
def test_rows_that_do_not_divide_get_another_type(width, wanted, stored):
    assert quantization.text_type("blk.2.attn_q.weight", (64, width), wanted, THE_450M) == stored


@pytest.mark.parametrize(
    ("name", "shape", "stored"),
    [
        ("v.blk.0.ffn_up.weight", (4304, 1152), "Q8_0"),
        ("v.blk.0.ffn_down.weight", (1152, 4304), "F16"),  # as in the 1.6B's and the 3B's tower
        ("v.position_embd.weight", (256, 768), "F32"),
        ("v.patch_embd.weight", (768, 3, 16, 16), "F16"),
        ("mm.1.bias", (2560,), "F32"),
    ],
)
def test_the_types_of_the_vision_part(name, shape, stored):
    assert quantization.vision_type(name, shape, "Q8_0") == stored


@pytest.mark.parametrize("wanted", sorted({*quantization.TEXT_TYPES, *quantization.VISION_TYPES}))
def test_every_type_has_a_number_in_gguf(wanted):
    assert quantization.file_type(wanted) >= 0


@pytest.mark.parametrize("kind", ["F32", "BF16", "F16", "Q8_0", "Q6_K", "Q5_1", "Q4_K", "Q4_0"])
def test_rows_are_converted_each_by_itself(kind):
    values = np.random.default_rng(0).normal(size=(6, 256)).astype(np.float32)
    whole = quantization.quantized(values, kind)
    assert whole.shape == (6, quantization.row_bytes(256, kind)) and whole.dtype == np.uint8
    parts = [quantization.quantized(values[start : start + 2], kind) for start in (0, 2, 4)]
    assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "F32"), (np.inf, "BF16"), (65536.0, "F16"), (-65536.0, "Q8_0")])
def test_values_that_a_type_cannot_hold_are_refused(value, kind):
    values = np.ones((2, 32), np.float32)
    values[1, 3] = value
    with pytest.raises(ValueError, match=f"values that {kind} cannot hold"):
        quantization.quantized(values, kind)


def test_params_yaml_may_name_every_type_that_can_be_written():
    assert get_args(params.TextType) == quantization.TEXT_TYPES
    assert get_args(params.VisionType) == quantization.VISION_TYPES
