import dataclasses
import hashlib
import json
import pickle
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlm.config.errors import InputError
from vlm.config.events import Log, Progress, Scalars
from vlm.config.params import LearningRateScale
from vlm.data import dataset
from vlm.evaluation import batching
from vlm.models import loading
from vlm.training import lora
from vlm.training.checkpoints import last_checkpoint
from vlm.training.job import FineTuning
from vlm.training.validation import validation_rows


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


def a_batch(job, directory):
    loaded, processor = loading.load(job.model, job.image)
    trainer = job.trainer(loaded, processor, directory, lambda event: None)
    return trainer, processor, next(iter(trainer.get_train_dataloader()))


def test_only_the_answer_is_supervised(job, tmp_path, task):
    _, processor, batch = a_batch(job, tmp_path)
    texts = set()
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        supervised = processor.tokenizer.decode(ids[labels != -100])
        texts.add(supervised)
        whole = processor.tokenizer.decode(ids).split("<|pad|>")[0]
        prompt = processor.apply_chat_template(task.conversation(), add_generation_prompt=True, tokenize=False)
        expanded = "<|image_start|>" + "<image>" * 16 + "<|image_end|>"
        assert whole == prompt.replace("<image>", expanded) + supervised
    assert texts <= {task.answer(label) + "<|im_end|>\n" for label in task.labels}


def test_training_uses_the_same_tokens_as_trl(job, tmp_path, task):
    """Prompt and answer, as SFTTrainer's own collator tokenises conversational rows."""
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    trainer, processor, _ = a_batch(job, tmp_path)
    rows = [trainer.train_dataset[i] for i in range(4)]
    ours = trainer.data_collator(rows)
    theirs = DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)(
        [
            {
                "images": [row["image"]],
                "prompt": task.conversation(),
                "completion": [{"role": "assistant", "content": task.answer(row["label"])}],
            }
            for row in rows
        ]
    )
    for i in range(4):
        real = [batch["input_ids"][i][batch["attention_mask"][i] == 1].tolist() for batch in (ours, theirs)]
        supervised = [batch["labels"][i][batch["labels"][i] != -100].tolist() for batch in (ours, theirs)]
        assert real[0] == real[1]
        assert supervised[0] == supervised[1]


def test_the_loss_equals_the_plain_one_up_to_rounding(job, tmp_path):
    """Value and gradients, compared with a loss from the logits of every position."""
    trainer, _, batch = a_batch(job, tmp_path)
    trainer.model.eval()  # no dropout
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.model.zero_grad()
    plain = trainer.model(**batch).loss
    plain.backward()
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
    assert gradients
    for name, p in trainer.model.named_parameters():
        if p.requires_grad:
            assert torch.allclose(gradients[name], p.grad, atol=1e-6), name


def test_each_part_has_its_own_learning_rate(job, tmp_path):
    scale = LearningRateScale(language=1.0, projector=0.5, vision=0.25)
    scaled = dataclasses.replace(job, finetune=job.finetune.model_copy(update={"lr_scale": scale}))
    trainer, _, _ = a_batch(with_modules(scaled, "language+projector+vision"), tmp_path)
    optimizer = trainer.create_optimizer()
    part_of = {id(p): lora.part(name) for name, p in trainer.model.named_parameters()}
    rates = {(part_of[id(p)], group["lr"]) for group in optimizer.param_groups for p in group["params"]}
    base = job.model.learning_rate
    assert rates == {("language", base), ("projector", base / 2), ("vision", base / 4)}
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in trainer.model.parameters() if p.requires_grad}


def test_result_files_and_events(job, tmp_path):
    events = []
    files = adapter(job, tmp_path, events.append)
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= set(files)
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
        "eval/accuracy",
        "eval/log_loss",
    }


def test_lora_settings_are_passed_on_to_peft(job, tmp_path):
    lora = job.finetune.lora.model_copy(update={"rslora": True, "dora": True, "bias": "lora_only", "dropout": 0.0})
    chosen = dataclasses.replace(job, finetune=job.finetune.model_copy(update={"lora": lora}))
    files = adapter(chosen, tmp_path)
    config = json.loads(files["adapter_config.json"])
    assert (config["use_rslora"], config["use_dora"], config["bias"]) == (True, True, "lora_only")
    table = pd.read_csv(tmp_path / "modules.csv")
    plain = 4 * (table["in_features"] + table["out_features"])
    assert (table["trainable_parameters"] >= plain + table["out_features"]).all()  # DoRA's magnitudes
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert table["trainable_parameters"].sum() == metrics["trainable_parameters"]


def test_the_best_checkpoint_on_validation_is_the_adapter_and_the_last_one_is_kept(job, tmp_path):
    for select_by, best_of in (("accuracy", max), ("eval_loss", min)):
        directory = tmp_path / select_by
        chosen = dataclasses.replace(job, finetune=job.finetune.model_copy(update={"select_by": select_by}))
        adapter(chosen, directory)
        table = pd.read_csv(directory / "checkpoints.csv")
        assert table["step"].tolist() == [2, 4, 6]
        best = best_of(table[select_by])
        (row,) = table.index[table["best"] == 1]
        assert row == table.index[table[select_by] == best][0]  # the earlier one on a tie
        metrics = json.loads((directory / "metrics.json").read_text())
        assert metrics["best_step"] == table["step"][row]
        assert metrics["val_accuracy"] == table["accuracy"][row]
        assert (table["accuracy_low"] <= table["accuracy"]).all()
        same = (directory / "adapter/adapter_model.safetensors").read_bytes() == (
            directory / "last/adapter_model.safetensors"
        ).read_bytes()
        assert same == (metrics["best_step"] == 6)


def test_the_adapter_loads_with_peft_and_transformers_alone(job, tmp_path):
    adapter(job, tmp_path)
    base = AutoModelForImageTextToText.from_pretrained(job.model.id, dtype=torch.float32)
    plain = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "adapter")
    ours, _ = loading.load(job.model, job.image, str(tmp_path / "adapter"))
    rows = dataset.Reader(job.validation).rows([0, 1])
    inputs = loading.encode(processor, job.task, [batching.decoded(row.image) for row in rows])
    with torch.inference_mode():
        assert torch.allclose(plain(**inputs).logits, ours(**inputs).logits, atol=1e-4)


def test_the_model_card_names_model_data_and_accuracy(job, tmp_path):
    adapter(job, tmp_path)
    card = ModelCard.load(tmp_path / "adapter" / "README.md")
    assert card.data.base_model == job.model.id
    assert job.model.revision in card.text
    assert hashlib.sha256(Path(job.train).read_bytes()).hexdigest() in card.text
    table = pd.read_csv(tmp_path / "checkpoints.csv")
    assert f"{table[table['best'] == 1]['accuracy'].item():.1%}" in card.text


def test_training_stops_when_validation_no_longer_improves(job, tmp_path):
    """With a learning rate of almost 0, the first validation pass stays the best."""
    still = job.finetune.model_copy(update={"learning_rate": 1e-12, "patience": 1})
    adapter(dataclasses.replace(job, finetune=still), tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["steps"], metrics["best_step"]) == (4, 2)


@pytest.mark.parametrize(("bias", "key"), [("none", r"options\.dtype"), ("all", r"finetune\.lora\.bias")])
def test_settings_that_float16_cannot_be_trained_with_are_refused_first(job, tmp_path, bias, key):
    if bias == "none" and torch.cuda.is_available():
        pytest.skip("a GPU trains it")
    lora = job.finetune.lora.model_copy(update={"bias": bias})
    half = dataclasses.replace(
        job,
        model=job.model.model_copy(update={"dtype": "float16"}),
        finetune=job.finetune.model_copy(update={"lora": lora}),
    )
    with pytest.raises(InputError, match=key):
        half.run(tmp_path, lambda event: None)


@pytest.mark.parametrize(
    ("modules", "values", "message"),
    [
        ("language", {"r": 5000}, r"finetune\.lora\.r: 5000 is more than the \d+ of the largest layer"),
        ("language", {"lr_scale": 0.0}, r"finetune\.lr_scale: is 0 for language, the only parts with LoRA"),
    ],
)
def test_settings_that_cannot_train_are_refused_before_training(job, modules, values, message, tmp_path):
    scale = LearningRateScale(language=values.pop("lr_scale", 1.0), projector=1.0, vision=1.0)
    knobs = job.finetune.lora.model_copy(update={"modules": modules, **values})
    finetune = job.finetune.model_copy(update={"lora": knobs, "lr_scale": scale})
    with pytest.raises(InputError, match=message):
        dataclasses.replace(job, finetune=finetune).run(tmp_path, lambda event: None)
    assert not (tmp_path / "checkpoints").exists()


def test_a_batch_larger_than_the_split_causes_a_warning(job, tmp_path):
    events = []
    knobs = job.finetune.model_copy(update={"batch_size": 32, "epochs": 1})
    dataclasses.replace(job, finetune=knobs).run(tmp_path, events.append)
    assert (
        Log("warning: params.yaml: finetune.batch_size: 32 is more than the 24 training rows: every epoch is one step")
        in events
    )


def test_a_diverging_loss_is_a_one_line_error_and_keeps_the_checkpoints(job, tmp_path):
    wild = dataclasses.replace(job, finetune=job.finetune.model_copy(update={"learning_rate": 1e4, "eval_steps": 1}))
    with pytest.raises(
        InputError, match=r"finetune\.learning_rate: the loss is .* at step \d with a learning rate of 10000"
    ):
        adapter(wild, tmp_path)
    assert last_checkpoint(tmp_path / "checkpoints") is not None
    assert not (tmp_path / "adapter").exists()


def test_validation_rows_are_spread_over_the_labels(job, make_split):
    split = make_split("train", 60)
    _, labels = dataset.ids_and_labels(split)
    rows = validation_rows(split, 20, seed=1)
    assert rows == sorted(set(rows)) == validation_rows(split, 20, seed=1)
    assert len(rows) == 20
    counts = Counter(labels[row] for row in rows)
    assert max(counts.values()) <= 1 or len(counts) == len(set(labels))
    assert validation_rows(split, 99, seed=1) == list(range(60))
    assert validation_rows(split, 20, seed=2) != rows


def test_a_resumed_run_ends_with_the_same_adapter_and_repeats_no_finished_step(job, tmp_path):
    whole_events, events = [], []
    whole = adapter(job, tmp_path / "whole", whole_events.append)

    def stop_in_step_five(event):
        if isinstance(event, Scalars) and event.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapter(job, tmp_path / "parts", stop_in_step_five)
    assert last_checkpoint(tmp_path / "parts" / "checkpoints").name == "checkpoint-4"
    assert adapter(job, tmp_path / "parts", events.append) == whole
    # DVCLive's curves are complete, too: the earlier steps come from the checkpoint.
    assert [e for e in events if isinstance(e, Scalars)] == [e for e in whole_events if isinstance(e, Scalars)]
    assert json.loads((tmp_path / "parts" / "runtime.json").read_text())["samples"] == 8


KILLED = """
import os, pickle, signal, sys
from pathlib import Path

def die(event, arguments):
    if event == "open" and str(arguments[0]).endswith("checkpoint-8/trainer_state.json") and "w" in str(arguments[1]):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(die)
job = pickle.loads(Path(sys.argv[1]).read_bytes())
job.run(Path(sys.argv[2]), lambda event: None)
"""


def test_a_run_killed_while_writing_a_checkpoint_ends_with_the_same_adapter(job, tmp_path):
    """In the second epoch, with labels drawn at random and cached image features; bit for bit."""
    knobs = job.finetune.model_copy(update={"epochs": 2, "balance": "sqrt"})
    job = dataclasses.replace(job, finetune=knobs)
    whole = adapter(job, tmp_path / "whole")
    (tmp_path / "job").write_bytes(pickle.dumps(job))
    (tmp_path / "parts").mkdir()
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "job", tmp_path / "parts"], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "parts/checkpoints/checkpoint-8/adapter_model.safetensors").exists()
    assert last_checkpoint(tmp_path / "parts" / "checkpoints").name == "checkpoint-6"
    assert adapter(job, tmp_path / "parts") == whole


def test_cached_image_features_change_only_the_time(job, tmp_path):
    knobs = job.finetune.model_copy(update={"epochs": 2})
    tables = []
    for budget in (1, 0):
        chosen = dataclasses.replace(job, finetune=knobs.model_copy(update={"cache_image_features": budget}))
        events = []
        adapter(chosen, tmp_path / str(budget), events.append)
        kept = any(isinstance(event, Progress) and event.unit == "picture encoded" for event in events)
        assert kept == bool(budget)
        tables.append(pd.read_csv(tmp_path / str(budget) / "checkpoints.csv"))
    pd.testing.assert_frame_equal(*tables, rtol=1e-3)


@pytest.mark.parametrize(
    ("knobs", "pattern"),
    [
        ({"epochs": 1}, "language"),
        ({"augment": "light"}, "language"),
        ({}, "language+projector+vision"),
        ({"bias": "all"}, "language"),
    ],
)
def test_image_features_are_not_cached_if_they_change_or_are_needed_once(job, knobs, pattern, tmp_path):
    bias = knobs.pop("bias", "none")
    job = with_modules(job, pattern)
    lora = job.finetune.lora.model_copy(update={"bias": bias})
    job = dataclasses.replace(job, finetune=job.finetune.model_copy(update={"epochs": 2, **knobs, "lora": lora}))
    events = []

    def stop_at_first_step(event):
        events.append(event)
        if isinstance(event, Scalars):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapter(job, tmp_path, stop_at_first_step)
    assert not any(isinstance(event, Progress) and event.unit == "picture encoded" for event in events)


def test_a_truncated_checkpoint_is_skipped(job, tmp_path):
    whole = adapter(job, tmp_path / "a")
    checkpoints = tmp_path / "a" / "checkpoints"
    last = last_checkpoint(checkpoints)
    for name in ("adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"):
        shutil.rmtree(tmp_path / "b", ignore_errors=True)
        shutil.copytree(checkpoints, tmp_path / "b")
        broken = tmp_path / "b" / last.name / name
        broken.write_bytes(broken.read_bytes()[:-20])
        before = last_checkpoint(tmp_path / "b")
        assert before is not None
        assert before.name < last.name, name
    # A run resumed from there ends with the same adapter.
    shutil.rmtree(checkpoints)
    (tmp_path / "b").rename(checkpoints)
    assert adapter(job, tmp_path / "a") == whole


def test_running_out_of_memory_lowers_the_micro_batch_and_keeps_the_batch_size(job, no_memory_for, tmp_path):
    whole = adapter(job, tmp_path / "a")
    events = []
    with no_memory_for(3):
        parts = adapter(job, tmp_path / "b", events.append)
    assert any(isinstance(event, Log) and "2 samples at once" in event.text for event in events)
    assert whole["README.md"][:200] == parts["README.md"][:200]
    tables = [pd.read_csv(tmp_path / name / "checkpoints.csv") for name in "ab"]
    assert tables[0]["step"].tolist() == tables[1]["step"].tolist()
    steps = [e.step for e in events if isinstance(e, Scalars) and "train/loss" in e.values]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_an_incomplete_checkpoint_does_not_count(tmp_path):
    assert last_checkpoint(tmp_path) is None
    for step, state in ((9, "{}"), (10, "{}"), (11, '{"global_st'), (12, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        save_file({"a": torch.zeros(1)}, tmp_path / f"checkpoint-{step}" / "adapter_model.safetensors")
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            torch.save({}, tmp_path / f"checkpoint-{step}" / name)
        if state is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path).name == "checkpoint-10"
    (tmp_path / "checkpoint-10" / "optimizer.pt").unlink()
    assert last_checkpoint(tmp_path).name == "checkpoint-9"


def test_the_seed_determines_the_initial_weights(job, tmp_path):
    def initial_weights(seed):
        torch.manual_seed(99)  # as if earlier code had drawn numbers
        trainer, _, _ = a_batch(dataclasses.replace(job, seed=seed), tmp_path / str(seed))
        return torch.cat([p.flatten() for name, p in trainer.model.named_parameters() if "lora_A" in name])

    one, again, other = initial_weights(1), initial_weights(1), initial_weights(2)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
