"""The whole pipeline, through the real `dvc`, on tiny random models of other architectures, each a file of three lines."""

import json

import pytest

from tests.architectures import build
from tests.test_pipeline import METRICS, Clone, make_clone

SMALLEST = {
    "compute: auto": "compute: local",
    "train: 1600": "train: 32",
    "validation: 160": "validation: 8",
    "test: 600": "test: 16",
    "batch_size: 32": "batch_size: 8",
    "max_new_tokens: 32": "max_new_tokens: 4",
    "outlines_samples: 64": "outlines_samples: 2",
    "epochs: null": "epochs: 1",
    "batch_size: 16 ": "batch_size: 8 ",
    "eval_steps: 50": "eval_steps: 2",
    "eval_samples: 160": "eval_samples: 8",
}
MODEL = """\
id: models/{name}
revision: null
options: {{}}
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Clone:
    return make_clone(tmp_path_factory, SMALLEST)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("qwen2_5_vl", "language+projector"),
        ("idefics3", "language+projector"),
        ("llava", "language+projector"),
        (
            "gemma3",
            "language",
        ),  # its projector is a bare matrix and no linear layer; with it, finetune stops and says so
    ],
)
def test_the_pipeline_runs_on(name, parts, clone):
    build(name, clone.folder / "models" / name)
    (clone.folder / "configs" / "models" / f"{name}.yaml").write_text(MODEL.format(name=name))
    clone.run("dvc", "exp", "run", "-S", f"model={name}", "-S", f"finetune.lora.modules={parts}")
    details = {name: json.loads((clone.folder / f"plots/{name}/details.json").read_text()) for name in METRICS}
    assert details["prepare"]["test_rows"] == details["final_eval"]["samples"] == 16
    assert details["finetune"]["steps"] == 4
    adapter = json.loads((clone.folder / "models/adapter/adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == f"models/{name}"
    assert clone.repro() == []
