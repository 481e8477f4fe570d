"""Shared fixtures: the embedded model, and splits small enough to evaluate and train on in seconds."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # pytest runs two files at a time: see addopts in pyproject.toml
import vlm  # noqa: F401  # isort: skip  (before torch, whose threads it sets up)
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from vlm.config.models import load_model
from vlm.config.params import FinetuneParams, ImageParams, LearningRateScale, LoraParams, load_params
from vlm.config.task import load_task
from vlm.data import dataset
from vlm.edge import gguf_files
from vlm.edge.classifier import Classifier
from vlm.models import loading
from vlm.sources import badges

ROOT = Path(__file__).parents[1]

# Hypothesis tries the same examples every time, and stores none on disk
settings.register_profile("repeatable", derandomize=True, database=None)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Keeps the tests' unfinished work out of the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def at_root(monkeypatch):
    """Runs the test in the repository's root, where configs/ and models/ are."""
    monkeypatch.chdir(ROOT)


@pytest.fixture
def task(at_root):
    return load_task("car_badges")


@pytest.fixture
def tiny(at_root):
    return load_model("tiny")


@pytest.fixture
def image_params():
    return ImageParams()


@pytest.fixture
def finetune_params():
    lora = LoraParams(modules="language+projector", r=4, alpha=8, dropout=0.1, rslora=False, dora=False, bias="none")
    return FinetuneParams(
        method="lora",
        loss="tokens",
        epochs=1,
        learning_rate=None,
        lr_scale=LearningRateScale(language=1.0, projector=1.0, vision=1.0),
        optimizer="adamw",
        batch_size=4,
        micro_batch=None,
        gradient_checkpointing="auto",
        eval_steps=2,
        eval_samples=8,
        select_by="accuracy",
        patience=None,
        balance="none",
        augment="none",
        cache_image_features=1,
        track_with=["dvclive"],
        lora=lora,
    )


@pytest.fixture
def make_split(task, tmp_path):
    """make_split("test", 10) renders a split of ten badges and returns its path."""

    def make(name: str, rows: int) -> str:
        icons = task.source.badges.icons
        rendered = badges.render_split(list(icons.values()), rows, 1, ["train", "test"].index(name), 0.3, workers=1)
        labels = list(icons)
        path = tmp_path / f"{name}.parquet"
        dataset.write(path, (dataset.Row(f"{name}-{i}", jpeg, labels[k]) for i, (k, jpeg) in enumerate(rendered)))
        return str(path)

    return make


@pytest.fixture
def no_memory_for():
    """`with no_memory_for(2):` simulates a device without memory for a forward pass of more than two prompts."""

    @contextmanager
    def limited(samples: int):
        def refuse(module, args):
            if isinstance(module, torch.nn.Embedding) and len(args[0]) > samples:
                raise torch.OutOfMemoryError("CUDA out of memory.")

        hook = torch.nn.modules.module.register_module_forward_pre_hook(refuse)
        try:
            yield
        finally:
            hook.remove()

    return limited


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """A folder with the base model `tiny` at F16 and its classifier.json, for car_badges."""
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        params = load_params()
        gguf_files.write(Path(params.model.id), folder, "F16", "F16")
        processor = loading.load_processor(params.model, params.image)
        Classifier.of(params, processor, "0" * 64).with_files(folder, ("F16", "F16")).save(folder)
    return folder
