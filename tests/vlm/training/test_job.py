import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.vlm.training.jobs import adapter, with_modules
from vlm.config.errors import InputError
from vlm.config.events import Log, Progress, Scalars
from vlm.config.params import LearningRateScale
from vlm.data import dataset
from vlm.evaluation import batching
from vlm.models import encoding, loading


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
    for select_by in ("accuracy", "eval_loss"):
        directory = tmp_path / select_by
        chosen = dataclasses.replace(job, finetune=job.finetune.model_copy(update={"select_by": select_by}))
        adapter(chosen, directory)
        table = pd.read_csv(directory / "checkpoints.csv")
        assert table["step"].tolist() == [2, 4, 6]
        order = {"accuracy": ["accuracy", "log_loss"], "eval_loss": ["eval_loss"]}[select_by]  # the latter on a tie
        best = table.sort_values(order, ascending=[name != "accuracy" for name in order], kind="stable").index[0]
        (row,) = table.index[table["best"] == 1]
        assert row == best
        metrics = json.loads((directory / "metrics.json").read_text())
        assert metrics["best_step"] == table["step"][row]
        assert metrics["val_accuracy"] == table["accuracy"][row]
        interval = pytest.approx((table["low"][row], table["high"][row]), rel=1e-5)  # metrics.json is rounded
        assert (metrics["val_low"], metrics["val_high"]) == interval
        assert ((table["low"] <= table["accuracy"]) & (table["accuracy"] <= table["high"])).all()
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
    inputs = encoding.encode(processor, job.task, [batching.decoded(row.image) for row in rows])
    with torch.inference_mode():
        assert torch.allclose(plain(**inputs).logits, ours(**inputs).logits, atol=1e-4)


def test_the_adapter_of_a_run_in_dvcs_copy_of_the_repository_names_the_model_as_its_file_does(
    job, tmp_path, monkeypatch
):
    shutil.copytree(job.model.id, tmp_path / "own")
    copied = tmp_path / "repository/.dvc/tmp/exps/standalone/tmpx"
    copied.mkdir(parents=True)
    job = dataclasses.replace(job, model=job.model.model_copy(update={"id": "../own"}))
    monkeypatch.chdir(copied)
    adapter(job, tmp_path / "out")
    monkeypatch.chdir(tmp_path / "repository")
    loading.load(job.model, job.image, str(tmp_path / "out" / "adapter"))


def test_the_model_card_names_model_data_and_accuracy(job, tmp_path):
    adapter(job, tmp_path)
    card = ModelCard.load(tmp_path / "adapter" / "README.md")
    assert card.data.base_model == job.model.id
    assert job.model.revision in card.text
    assert hashlib.sha256(Path(job.train).read_bytes()).hexdigest() in card.text
    table = pd.read_csv(tmp_path / "checkpoints.csv")
    assert f"{table[table['best'] == 1]['accuracy'].item():.1%}" in card.text


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


def test_a_smaller_micro_batch_uses_the_image_features_that_are_there(job, no_memory_for, tmp_path):
    events = []
    with no_memory_for(3):
        adapter(
            dataclasses.replace(job, finetune=job.finetune.model_copy(update={"epochs": 2})), tmp_path, events.append
        )
    assert any(isinstance(event, Log) and "2 samples at once" in event.text for event in events)
    encoded = [event.done for event in events if isinstance(event, Progress) and event.unit == "picture encoded"]
    assert encoded == [16, 24, 32]  # 24 pictures and 8, 16 at a time, once


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
