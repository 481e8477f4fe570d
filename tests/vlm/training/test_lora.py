import re

import pytest
from transformers import AutoModelForImageTextToText

from tests.architectures import ARCHITECTURES, build
from vlm.config.errors import InputError
from vlm.training import lora

KEY = "params.yaml: finetune.lora.modules"


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    return lambda name: AutoModelForImageTextToText.from_pretrained(build(name, tmp_path_factory.mktemp(name)))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_presets_are_derived_for_any_architecture(load, name):
    """Every linear layer except the output layer and the patch embedding is in exactly one part; patterns are anchored."""
    model = load(name)
    head = model.get_output_embeddings()
    linear = {n for n, m in model.named_modules() if type(m).__name__ == "Linear" and m is not head}
    linear = {n for n in linear if not n.endswith("patch_embedding")}
    patterns = {part: lora.derived_pattern(model, part) for part in lora.PARTS}
    found = [{n for n in linear if pattern and re.fullmatch(pattern, n)} for pattern in patterns.values()]
    assert sum(map(len, found)) == len(linear) == len(set.union(*found))
    assert patterns["language"]
    assert patterns["vision"]
    for part, pattern in patterns.items():
        if pattern:
            assert pattern[0] == "^"
            assert pattern[-1] == "$"
            assert set(lora.matched_modules(model, pattern, KEY)) == {n for n in linear if lora.part(n) == part}


def test_a_preset_joins_its_parts(load):
    model = load("lfm2_vl")
    both = lora.pattern_for(model, "language+projector", {}, KEY)
    parts = {lora.part(name) for name in lora.matched_modules(model, both, KEY)}
    assert parts == {"language", "projector"}
    assert lora.pattern_for(model, "vision", {"vision": "^x$"}, KEY) == "^x$"  # the model file's comes first
    assert lora.pattern_for(model, r".*\.q_proj", {}, KEY) == r".*\.q_proj"


def test_a_part_that_the_model_lacks_is_an_error(load):
    with pytest.raises(InputError, match="'language\\+projector': the model has no linear layers in its projector"):
        lora.pattern_for(load("gemma3"), "language+projector", {}, KEY)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            r".*\.(o_proj|gate_proj)",
            r"finetune\.lora\.modules: .*matches no module.*which has model.*language, projector",
        ),
        (r".*\.(q_proj|k_proj|o_proj)", r"no linear layer of the model matches 'o_proj'"),
        (r"^(model\.language_model\..*\.(q_proj|up_proj)|model\..*\.w1)$", r"matches 'up_proj'"),
        (r".*\.feed_forward", r"linear layers only"),
        ("langage+projector", r"matches no module"),
        (
            r".*",
            r"'\.\*' matches the model as a whole, a Lfm2VlForConditionalGeneration; it should match linear layers",
        ),
        ("lm_head", r"'lm_head' matches lm_head, the output layer, which cannot have LoRA"),
    ],
)
def test_a_pattern_that_does_not_match_what_it_names_is_an_error(load, pattern, message):
    with pytest.raises(InputError, match=message):
        lora.matched_modules(load("lfm2_vl"), pattern, KEY)
