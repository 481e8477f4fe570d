"""What the tests share: the embedded model, and splits small enough to evaluate and train on in seconds."""

from pathlib import Path

import pytest

from vlm import badges, dataset
from vlm.params import EvaluationParams, FinetuneParams, ImageParams, LoraParams, load_model, load_task

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Unfinished work of tests stays out of the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def at_root(monkeypatch):
    """In the repository, where configs/ and models/ are."""
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
def evaluation_params():
    return EvaluationParams(batch_size=4, max_new_tokens=12)


@pytest.fixture
def finetune_params():
    lora = LoraParams(modules=None, r=4, alpha=8, dropout=0.1)
    return FinetuneParams(epochs=1, learning_rate=None, batch_size=4, micro_batch=None, eval_steps=2, lora=lora)


@pytest.fixture
def make_split(task, tmp_path):
    """make_split("test", 10) renders a split of ten badges and gives its path."""

    def make(name: str, rows: int) -> str:
        icons = task.source.badges.icons
        rendered = badges.render_split(list(icons.values()), rows, 1, ["train", "test"].index(name), 0.3, workers=1)
        labels = list(icons)
        path = tmp_path / f"{name}.parquet"
        dataset.write(path, (dataset.Row(f"{name}-{i}", jpeg, labels[k]) for i, (k, jpeg) in enumerate(rendered)))
        return str(path)

    return make
