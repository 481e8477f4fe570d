"""Every file in configs/ loads, and says what it means to say."""

import re
from pathlib import Path

import pytest

from vlm.config.models import load_model
from vlm.config.params import load_params
from vlm.config.task import load_task
from vlm.sources import badges
from vlm.training import lora

ROOT = Path(__file__).parents[1]
MODELS = sorted(file.stem for file in (ROOT / "configs/models").glob("*.yaml"))
TASKS = sorted(file.stem for file in (ROOT / "configs/tasks").glob("*.yaml"))


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_params_yaml_loads():
    params = load_params()
    assert params.model.name in MODELS and params.task.name in TASKS


@pytest.mark.parametrize("name", TASKS)
def test_a_task_loads_and_its_question_lists_the_labels(name):
    task = load_task(name)
    question = task.conversation()[-1]["content"][1]["text"]
    assert question.endswith("\n\n" + "\n".join(task.labels))
    assert all(task.parse_leniently(alias) == label for label in task.aliases for alias in task.aliases[label])


def test_the_car_makers_are_those_of_stanford_cars():
    task = load_task("car_maker")
    assert len(task.labels) == 49
    assert list(task.labels) == sorted(task.labels)
    assert task.parse_leniently("It's an Aston Martin DB9.") == "Aston"
    assert task.parse_leniently("A Mercedes Benz") == "Mercedes-Benz"


def test_every_badge_has_an_icon():
    for name in load_task("car_badges").source.badges.icons.values():
        assert badges.icon(name).getextrema()[1] == 255


@pytest.mark.parametrize("name", MODELS)
def test_a_model_loads(name):
    model = load_model(name)
    assert model.folder is not None or re.fullmatch(r"[\w-]+/[\w.-]+", model.id)


@pytest.fixture(scope="module")
def linear_layers() -> list[str]:
    """The names of an LFM2-VL's linear and convolution layers; the names depend on the kinds of layers only."""
    import torch
    from transformers import Lfm2VlConfig, Lfm2VlForConditionalGeneration

    text = {"model_type": "lfm2", "vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2,
            "num_key_value_heads": 2, "num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}  # fmt: skip
    vision = {"model_type": "siglip2_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
              "num_attention_heads": 2, "patch_size": 16, "num_patches": 64, "vision_use_head": False}  # fmt: skip
    with torch.device("meta"):
        model = Lfm2VlForConditionalGeneration(Lfm2VlConfig(text_config=text, vision_config=vision, image_token_id=396))
    kinds = (torch.nn.Linear, torch.nn.Conv1d)
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]


@pytest.mark.parametrize("name", MODELS)
def test_the_presets_of_lora_are_all_of_their_parts_and_nothing_else(name, linear_layers):
    """PEFT takes a string as a pattern that has to match a module's whole name."""
    patterns = load_model(name).lora_modules
    matched = {part: {layer for layer in linear_layers if re.fullmatch(patterns[part], layer)} for part in lora.PARTS}
    wanted = [layer for layer in linear_layers if not layer.endswith(("lm_head", ".conv.conv", "patch_embedding"))]
    assert matched == {part: {layer for layer in wanted if lora.part(layer) == part} for part in lora.PARTS}
    assert {layer.rpartition(".")[2] for layer in matched["language"] | matched["projector"]} == set(
        "q_proj k_proj v_proj out_proj in_proj w1 w2 w3 linear_1 linear_2".split()
    )
    for pattern in patterns.values():
        assert pattern.startswith("^")
        assert pattern.endswith("$")
