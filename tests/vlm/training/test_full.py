"""Full fine-tuning: the folder that it writes, what is trained, memory, and resuming."""

import dataclasses
import importlib.util
import json

import pandas as pd
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from tests.vlm.training.jobs import a_batch, adapter
from vlm.config.errors import InputError
from vlm.config.events import Log, Progress, Scalars
from vlm.config.params import LearningRateScale
from vlm.models import loading
from vlm.training import footprint, full, lora
from vlm.training.checkpoints import last_checkpoint
from vlm.training.rates import peak

FROZEN_TOWER = LearningRateScale(language=1.0, projector=1.0, vision=0.0)


@pytest.fixture
def whole(job):
    return dataclasses.replace(job, finetune=job.finetune.model_copy(update={"method": "full", "loss": "both"}))


def test_the_result_is_a_model_that_loads_with_transformers_alone_and_here(whole, tmp_path):
    events = []
    files = adapter(whole, tmp_path, events.append)
    assert {"README.md", "base_model.json", "config.json", "model.safetensors", "tokenizer.json"} <= set(files)
    folder = tmp_path / "adapter"
    plain = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    ours, _ = loading.load(whole.model, whole.image, str(folder))
    base, _ = loading.load(whole.model, whole.image)
    before, expected = base.state_dict(), plain.state_dict()
    assert all(weight.equal(expected[name]) for name, weight in ours.state_dict().items())
    changed = {lora.part(name) for name, weight in ours.state_dict().items() if not weight.equal(before[name])}
    assert changed == {"language", "projector", "vision"}
    card = ModelCard.load(folder / "README.md")
    assert (card.data.library_name, card.data.base_model, "lora" in card.data.tags) == (
        "transformers",
        "models/tiny",
        False,
    )
    assert "nats: three times a token's, plus a sample's" in card.text
    rate = f"{whole.model.learning_rate / 10:.4g}"
    assert f"Highest learning rate {rate}." in card.text
    assert Log(f"learning rate {rate}, a tenth of the model's, for full fine-tuning") in events
    table = pd.read_csv(tmp_path / "modules.csv")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert table["trainable_parameters"].sum() == metrics["trainable_parameters"] == base.num_parameters()


def test_a_resumed_run_ends_with_the_same_model(whole, tmp_path):
    expected = adapter(whole, tmp_path / "whole")

    def stop_in_step_five(event):
        if isinstance(event, Scalars) and event.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapter(whole, tmp_path / "parts", stop_in_step_five)
    last = last_checkpoint(tmp_path / "parts" / "checkpoints")
    assert last.name == "checkpoint-4"
    assert adapter(whole, tmp_path / "parts") == expected
    weights = tmp_path / "parts" / "checkpoints" / "checkpoint-6" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-20])
    assert last_checkpoint(tmp_path / "parts" / "checkpoints").name < "checkpoint-6"


def test_a_frozen_vision_tower_keeps_its_weights_and_its_features_are_cached(whole, tmp_path):
    knobs = whole.finetune.model_copy(update={"lr_scale": FROZEN_TOWER, "epochs": 2, "eval_steps": 20})
    events = []
    adapter(dataclasses.replace(whole, finetune=knobs), tmp_path, events.append)
    assert any(isinstance(event, Progress) and event.unit == "picture encoded" for event in events)
    before = load_file(f"{whole.model.id}/model.safetensors")
    after = load_file(tmp_path / "adapter" / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {lora.part(name) for name in before if not before[name].equal(after[name])}
    assert changed == {"language", "projector"}


def test_a_model_without_the_parts_that_are_to_be_trained_is_one_line():
    scale = LearningRateScale(language=0.0, projector=1.0, vision=1.0)
    with pytest.raises(InputError, match=r"^params\.yaml: finetune\.lr_scale: is 0 for every part that the model has"):
        full.unfreeze(torch.nn.Linear(2, 2), scale)  # a language model by its parameters' names


def test_bfloat16_weights_are_trained_in_float32_and_written_in_bfloat16(whole, tmp_path):
    knobs = whole.finetune.model_copy(update={"eval_steps": 20})
    half = dataclasses.replace(whole, model=whole.model.model_copy(update={"dtype": "bfloat16"}), finetune=knobs)
    model, _ = half.load()
    assert model.dtype == torch.float32
    adapter(half, tmp_path)
    weights = load_file(tmp_path / "adapter" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    trained = load_file(tmp_path / "checkpoints" / "checkpoint-6" / "model.safetensors")
    assert all(weights[name].equal(weight.bfloat16()) for name, weight in trained.items())


def test_a_model_of_another_base_is_refused(whole, tiny, tmp_path):
    (tmp_path / "base_model.json").write_text('{"id": "org/other", "revision": null}')
    with pytest.raises(InputError, match=r"base_model\.json: id: 'org/other' is not the model tiny, 'models/tiny'$"):
        loading.load(tiny, whole.image, str(tmp_path))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_counts_gradients_and_optimizer_states_of_all_trained_parameters(dtype, whole, tmp_path):
    model = whole.model.model_copy(update={"dtype": dtype})
    knobs = whole.finetune.model_copy(update={"lr_scale": FROZEN_TOWER, "loss": "tokens", "cache_image_features": 0})
    job = dataclasses.replace(whole, model=model, finetune=knobs)
    need = footprint.of_job(job)
    trainer, _, batch = a_batch(job, tmp_path)
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    assert need.trained == trained * (16 if dtype == "float32" else 18)  # with copies for autocast
    trainer.model.train()
    with footprint.autocast("cpu", getattr(torch, dtype)):
        found = footprint.count(trainer.model, lambda: trainer.compute_loss(trainer.model, dict(batch)))
    assert found.total == pytest.approx(4 * (need.saved.total + need.logits / 4), rel=0.15)
    smaller = dataclasses.replace(job, finetune=knobs.model_copy(update={"optimizer": "adamw_8bit"}))
    tables = sum(
        m.weight.numel()
        for m in trainer.model.modules()
        if isinstance(m, torch.nn.Embedding) and m.weight.requires_grad
    )
    assert tables > 0
    assert footprint.of_job(smaller).trained == need.trained - 6 * (trained - tables)


@pytest.mark.parametrize(("gpu", "lacking"), [(False, "an NVIDIA GPU"), (True, "the package bitsandbytes")])
def test_8_bit_states_that_cannot_be_had_are_one_line_before_anything_is_loaded(
    gpu, lacking, whole, monkeypatch, tmp_path
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    knobs = whole.finetune.model_copy(update={"optimizer": "adamw_8bit"})
    missing = whole.model.model_copy(update={"id": "models/nothing"})
    job = dataclasses.replace(whole, finetune=knobs, model=missing)
    with pytest.raises(InputError, match=rf"^params\.yaml: finetune\.optimizer: adamw_8bit needs {lacking}"):
        job.require_trainable()


def test_the_learning_rate_is_a_number_the_models_or_by_the_size_of_the_model(job, tiny):
    def rate(**knobs):
        return peak(job.finetune.model_copy(update=knobs), tiny, hidden=2000)

    assert rate(learning_rate=0.01, method="full") == 0.01
    assert (rate(), rate(method="full")) == (0.002, pytest.approx(0.0002))
    assert rate(learning_rate="auto") == pytest.approx(5e-4)
    assert rate(learning_rate="auto", method="full") == pytest.approx(5e-5)
    smaller = peak(job.finetune.model_copy(update={"learning_rate": "auto"}), tiny, hidden=1000)
    assert smaller == pytest.approx(5e-4 * 2**0.78)
