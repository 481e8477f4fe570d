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
def test_a_model_loads_and_its_file_begins_with_the_command_that_uses_it(name):
    model = load_model(name)
    first = (ROOT / "configs" / "models" / f"{name}.yaml").read_text().splitlines()[0]
    assert first == "# dvc repro" if name == "tiny" else first.startswith(f"# dvc exp run -S model={name} ")
    assert model.folder is not None or re.fullmatch(r"[\w-]+/[\w.-]+", model.id)


# What the model files named before the parts were read off the module tree.
PATTERNS = {
    "language": r"^model\.language_model\..*\.(q_proj|k_proj|v_proj|out_proj|in_proj|w1|w2|w3)$",
    "projector": r"^model\.multi_modal_projector\.(linear_1|linear_2)$",
    "vision": r"^model\.vision_tower\..*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)$",
}


@pytest.fixture(scope="module")
def lfm2_vl():
    """An LFM2-VL without weights; the names of its layers depend on the kinds of layers only."""
    import torch
    from transformers import Lfm2VlConfig, Lfm2VlForConditionalGeneration

    text = {"model_type": "lfm2", "vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2,
            "num_key_value_heads": 2, "num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}  # fmt: skip
    vision = {"model_type": "siglip2_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
              "num_attention_heads": 2, "patch_size": 16, "num_patches": 64, "vision_use_head": False}  # fmt: skip
    with torch.device("meta"):
        return Lfm2VlForConditionalGeneration(Lfm2VlConfig(text_config=text, vision_config=vision, image_token_id=396))


@pytest.mark.parametrize("part", lora.PARTS)
def test_the_derived_presets_of_lora_are_all_linear_layers_of_their_part_and_nothing_else(part, lfm2_vl):
    names = [name for name, _ in lfm2_vl.named_modules()]
    derived = {name for name in names if re.fullmatch(lora.derived_pattern(lfm2_vl, part), name)}
    assert derived == {name for name in names if re.fullmatch(PATTERNS[part], name)}
    assert derived
    assert all(lora.part(name) == part for name in derived)


def test_a_lora_on_all_parts_leaves_out_the_output_layer_the_convolution_and_the_patch_embedding(lfm2_vl):
    import torch

    pattern = lora.pattern_for(lfm2_vl, "language+projector+vision", {}, "key")
    kinds = (torch.nn.Linear, torch.nn.Conv1d)
    left = [name for name, m in lfm2_vl.named_modules() if isinstance(m, kinds) and not re.fullmatch(pattern, name)]
    assert sorted(name.rpartition(".")[2] for name in left) == ["conv", "lm_head", "patch_embedding"]


@pytest.mark.parametrize(("key", "names"), [("model", MODELS), ("task", TASKS)])
def test_params_yaml_lists_the_names_to_choose_from(key, names):
    """DVC's own message about a wrong name comes before ours and does not list them."""
    text = (ROOT / "params.yaml").read_text()
    (listed,) = re.findall(rf"A file in configs/{key}s/:\n# (.*)\n{key}: ", text)
    assert sorted(re.sub(r" \(.*?\)", "", listed).split(", ")) == names
