"""Chat templates of different conventions; the architectures' own prompts are tested with the posterior."""

import re

import pytest

from tests.architectures import ARCHITECTURES, build
from vlm.config.errors import InputError
from vlm.config.models import ModelConfig
from vlm.config.params import ImageParams
from vlm.models import chat, encoding, loading

# How published templates write a system prompt.
TEXT_ONLY = "{% for m in messages %}{% if m.role == 'system' %}S:{{ m.content | trim }}\n{% else %}U:{% for p in m.content %}{{ p.text or '<image>' }}{% endfor %}{% endif %}{% endfor %}"
PARTS_ONLY = "{% for m in messages %}{{ m.role }}:{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% elif p.type == 'image' %}<image>{% endif %}{% endfor %}{% endfor %}"
NO_SYSTEM = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}{% for p in m.content %}{{ p.text or '<image>' }}{% endfor %}{% endfor %}"


@pytest.fixture
def processor(tiny, image_params):
    return loading.load_processor(tiny, image_params)


@pytest.mark.parametrize(
    ("template", "role", "kind"), [(TEXT_ONLY, "system", str), (PARTS_ONLY, "system", list), (NO_SYSTEM, "user", list)]
)
def test_the_system_prompt_is_never_lost(processor, task, template, role, kind):
    processor.chat_template = template
    first = chat.messages(processor, task)[0]
    assert (first["role"], type(first["content"])) == (role, kind)
    written = chat.prompt(processor, task)
    assert written.count(task.prompt.system) == 1
    assert "Acura" in written
    assert written.count("<image>") == 1


def test_a_template_that_leaves_out_the_question_is_a_one_line_error(processor, task):
    processor.chat_template = "Hello."
    with pytest.raises(
        InputError, match=r"configs/tasks/car_badges\.yaml: prompt: the model's chat template leaves out"
    ):
        chat.prompt(processor, task)


@pytest.mark.parametrize("token", ["<image>", "<|im_end|>"])
def test_special_tokens_in_a_prompt_are_a_one_line_error(processor, task, token):
    asked = task.model_copy(update={"prompt": task.prompt.model_copy(update={"user": f"Which {token}?"})})
    with pytest.raises(InputError, match=rf"car_badges\.yaml: prompt\.user: '{re.escape(token)}' is a special token"):
        chat.prompt(processor, asked)


def test_a_model_without_a_template_is_a_one_line_error(processor, task):
    processor.chat_template = processor.tokenizer.chat_template = None
    with pytest.raises(InputError, match=r"model: has no chat template; only models tuned for conversations do"):
        chat.prompt(processor, task)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_prompt_has_only_one_bos_token(name, task, tmp_path):
    from PIL import Image

    processor = loading.load_processor(ModelConfig(name=name, id=str(build(name, tmp_path))), ImageParams())
    ids = encoding.encode(processor, task, [Image.new("RGB", (64, 64))])["input_ids"][0].tolist()
    assert ids.count(processor.tokenizer.bos_token_id) == (processor.tokenizer.bos_token_id is not None)
