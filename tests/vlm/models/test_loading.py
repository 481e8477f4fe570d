import shutil

import pytest

from vlm.config.errors import InputError
from vlm.config.params import ImageParams
from vlm.models import loading


def test_max_tokens_limits_the_image_tokens(tiny, task):
    from PIL import Image

    picture = Image.new("RGB", (256, 256))
    tokens = {}
    for most in (None, 8):
        processor = loading.load_processor(tiny, ImageParams(max_tokens=most))
        prompt = processor.apply_chat_template(task.conversation(), tokenize=False)
        ids = processor(images=[[picture]], text=[prompt])["input_ids"][0]
        tokens[most] = ids.count(processor.image_token_id)
    assert tokens[8] <= 8 < tokens[None] <= 16


def test_a_setting_that_the_processor_lacks_is_named(tiny, monkeypatch):
    real = loading.load_processor(tiny, ImageParams())
    lacking = type("Processor", (), {"tokenizer": real.tokenizer, "image_processor": object()})()
    monkeypatch.setattr("transformers.AutoProcessor.from_pretrained", lambda *_, **__: lacking)
    with pytest.raises(InputError, match=r"params\.yaml: image\.splitting: .*null"):
        loading.load_processor(tiny, ImageParams(splitting=True))


def test_a_model_that_differs_from_its_pin_is_refused(tiny, tmp_path):
    shutil.copytree(tiny.id, tmp_path / "copy")
    with (tmp_path / "copy" / "config.json").open("a") as file:
        file.write("\n")
    changed = tiny.model_copy(update={"id": str(tmp_path / "copy")})
    with pytest.raises(InputError, match=r"configs/models/tiny\.yaml: revision: .*changed.*vlm pin"):
        loading.load(changed, ImageParams())


def test_a_relative_folder_is_loaded_from_dvcs_copy_of_the_repository(tiny, tmp_path, monkeypatch):
    shutil.copytree(tiny.id, tmp_path / "own")
    copied = tmp_path / "repository/.dvc/tmp/exps/standalone/tmpx"
    copied.mkdir(parents=True)
    monkeypatch.chdir(copied)
    model, processor = loading.load(tiny.model_copy(update={"id": "../own"}), ImageParams())
    assert model.config.vision_config.hidden_size == 128
    assert processor.tokenizer.padding_side == "left"


def test_a_folder_that_is_not_an_adapter_is_named(tiny, tmp_path):
    with pytest.raises(InputError, match=r"is no adapter.*dvc repro finetune"):
        loading.load(tiny, ImageParams(), adapter=str(tmp_path))
