import numpy as np
import simple_icons_pack
import torch
from transformers import AutoModelForImageTextToText

from models import pretrain_tiny, prompt_tiny
from vlm.config.params import ImageParams
from vlm.models import loading

FEW = prompt_tiny.Settings(images=8, steps=3, batch=4)


def test_the_makers_are_never_the_answer_and_their_list_never_has_one(task):
    others = [simple_icons_pack.get_icon(name).title for name in pretrain_tiny.OTHER_BRANDS]
    rng = np.random.default_rng(0)
    drawn = [prompt_tiny.conversation(task, "Nike", others, rng) for _ in range(400)]
    of_the_task = [answer for messages, answer in drawn if messages == task.conversation()]
    assert len(of_the_task) > 150
    assert set(of_the_task) == {None}
    for messages, answer in drawn:
        if answer is not None:
            assert "Nike" in answer
            assert not any(f"\n{label}\n" in str(messages) for label in task.labels)
    wording = task.prompt.user.split("\n")[0]
    lists = [m[-1]["content"][1]["text"] for m, answer in drawn if answer == "Nike" and wording in str(m)]
    assert len(lists) > 50
    assert len({tuple(text.split("\n")[-31:]) for text in lists}) > 10  # orders


def test_every_token_but_the_padding_is_supervised(task, tiny):
    _, processor = loading.load(tiny, ImageParams())
    for batch in prompt_tiny.batches(processor, task, FEW):
        supervised = batch["labels"] != -100
        assert torch.equal(supervised, batch["attention_mask"] == 1)
        assert torch.equal(batch["labels"][supervised], batch["input_ids"][supervised])


def test_equal_settings_give_equal_weights_and_leave_the_tower_as_it_is(at_root, tmp_path, capsys):
    for name in ("a", "b"):
        prompt_tiny.train(tmp_path / name, FEW)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    trained, before = (
        AutoModelForImageTextToText.from_pretrained(folder).state_dict() for folder in (tmp_path / "a", "models/tiny")
    )
    changed = {name for name, weights in before.items() if not torch.equal(weights, trained[name])}
    assert changed
    assert not [name for name in changed if "vision_tower" in name]
