import dataclasses
import json

import pytest

from vlm import model
from vlm.errors import InputError
from vlm.events import Scalars
from vlm.finetuning import FineTuning, last_checkpoint


@pytest.fixture
def job(task, tiny, image_params, finetune_params, make_split):
    return FineTuning(
        task=task,
        model=tiny,
        image=image_params,
        finetune=finetune_params,
        seed=5,
        train=make_split("train", 24),
        validation=make_split("test", 8),
    )


def with_modules(job, pattern):
    lora = job.finetune.lora.model_copy(update={"modules": pattern})
    return dataclasses.replace(job, finetune=job.finetune.model_copy(update={"lora": lora}))


def adapter(job, directory, emit=lambda event: None):
    directory.mkdir(exist_ok=True)
    job.run(directory, emit)
    return {file.name: file.read_bytes() for file in sorted((directory / "adapter").iterdir())}


def test_only_the_answer_is_supervised(job, tmp_path, task):
    loaded, processor = model.load(job.model, job.image)
    trainer = job.trainer(loaded, processor, tmp_path, lambda event: None)
    batch = next(iter(trainer.get_train_dataloader()))
    texts = set()
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        supervised = processor.tokenizer.decode(ids[labels != -100])
        texts.add(supervised)
        whole = processor.tokenizer.decode(ids).split("<|pad|>")[0]
        prompt = processor.apply_chat_template(task.conversation(), add_generation_prompt=True, tokenize=False)
        expanded = "<|image_start|>" + "<image>" * 16 + "<|image_end|>"
        assert whole == prompt.replace("<image>", expanded) + supervised
    assert texts <= {task.answer(label) + "<|im_end|>\n" for label in task.labels}


def test_results(job, tmp_path):
    events = []
    files = adapter(job, tmp_path, events.append)
    assert list(files) == ["adapter_config.json", "adapter_model.safetensors"]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["steps"] == 6
    table = (tmp_path / "modules.csv").read_text().splitlines()
    assert len(table) - 1 == metrics["lora_modules"]
    assert sum(int(row.split(",")[-1]) for row in table[1:]) == metrics["trainable_parameters"]
    scalars = [event for event in events if isinstance(event, Scalars)]
    assert [event.step for event in scalars if "train/loss" in event.values] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in scalars if "eval/loss" in event.values] == [2, 4, 6]
    assert {name for event in scalars for name in event.values} == {
        "train/loss",
        "train/learning_rate",
        "train/grad_norm",
        "eval/loss",
    }


def test_an_interrupted_training_ends_with_the_same_adapter_and_repeats_no_finished_step(job, tmp_path):
    whole_events, events = [], []
    whole = adapter(job, tmp_path / "whole", whole_events.append)

    def stop_in_step_five(event):
        if isinstance(event, Scalars) and event.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapter(job, tmp_path / "parts", stop_in_step_five)
    assert last_checkpoint(tmp_path / "parts" / "checkpoints").name == "checkpoint-4"
    assert adapter(job, tmp_path / "parts", events.append) == whole
    # What DVCLive shows is whole, too: the earlier steps come from the checkpoint.
    assert [e for e in events if isinstance(e, Scalars)] == [e for e in whole_events if isinstance(e, Scalars)]
    assert json.loads((tmp_path / "parts" / "runtime.json").read_text())["samples"] == 8


def test_a_checkpoint_that_was_not_written_to_its_end_does_not_count(tmp_path):
    assert last_checkpoint(tmp_path) is None
    for step, state in ((9, "{}"), (10, "{}"), (11, '{"global_st'), (12, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path).name == "checkpoint-10"


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (r".*\.(o_proj|gate_proj)", r"params\.yaml: finetune\.lora\.modules: .*matches no module.*which has"),
        (r".*\.feed_forward", r"params\.yaml: finetune\.lora\.modules: .*only linear layers"),
    ],
)
def test_a_pattern_that_matches_nothing_or_the_wrong_thing_ends_before_training(job, pattern, message):
    loaded, _ = model.load(job.model, job.image)
    with pytest.raises(InputError, match=message):
        with_modules(job, pattern).lora_modules(loaded)


def test_a_model_file_without_modules_wants_them_in_params(job):
    bare = dataclasses.replace(job, model=job.model.model_copy(update={"lora_modules": None}))
    with pytest.raises(InputError, match=r"finetune\.lora\.modules: is null.*regular expression"):
        bare.lora_modules(None)
