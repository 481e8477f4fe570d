from pathlib import Path

import pytest

from vlm.config import gpus
from vlm.config.errors import InputError
from vlm.config.models import ModelConfig, load_model
from vlm.config.params import ModalParams
from vlm.config.yaml_files import read_yaml

MODEL = ModelConfig(name="3B", id="LiquidAI/LFM2-VL-3B", gpu="H100")


def container(modal_gpu: str | None, several: bool = True, **values) -> gpus.Container:
    """The container for MODEL with other `values`, and with params.yaml's modal.gpu."""
    modal = ModalParams(gpu=modal_gpu, containers=1, max_dollars=None, timeout=24, region=None)
    return gpus.container_for(MODEL.model_copy(update=values), modal, several)


def test_the_price_of_a_container_is_that_of_its_gpus_cores_and_memory(at_root):
    dollars = pytest.approx(0.000222 + 2 * 0.0000131 + 10 * 0.00000222)
    assert container("L4") == gpus.Container("L4", count=1, cpu_cores=2, memory_gib=10, dollars_per_second=dollars)
    one, four = container(None), container("H100:4")
    assert (one.gpu, four.gpu) == ("H100", "H100:4")
    assert (one.count, four.count) == (1, 4)
    assert four.cpu_cores == 4 * one.cpu_cores == 32
    assert four.memory_gib == 4 * one.memory_gib == 64
    assert four.dollars_per_second == pytest.approx(4 * one.dollars_per_second)
    assert container("H100:4", several=False) == one


def test_every_gpu_has_all_values(at_root):
    table = read_yaml("configs/gpus.yaml")
    for gpu in table["dollars_per_second"]:
        assert container(gpu, dtype="float32").dollars_per_second > table["dollars_per_second"][gpu]
        assert gpus.memory_gb(gpu) >= 16
    for values in (table["memory_gb"], table["cpu_cores"]):
        assert list(values) == list(table["dollars_per_second"])
    assert set(table["without_bfloat16"]) < set(table["dollars_per_second"])
    assert gpus.memory_gb("H100:4") == gpus.memory_gb("H100") == 80
    for file in Path("configs/models").glob("*.yaml"):
        model = load_model(file.stem)
        assert container(None, gpu=model.gpu, dtype=model.dtype).dollars_per_second > 0


def test_a_larger_gpu_is_the_cheapest_one_with_more_memory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("configs").mkdir()
    gpus.FILE.write_text("dollars_per_second: {L4: 1, A: 3, B: 2, C: 4}\nmemory_gb: {L4: 24, A: 40, B: 48, C: 24}\n")
    assert [gpus.larger(gpu) for gpu in ("L4", "L4:2", "A", "B", "C:8")] == ["B", "B:2", "B", None, "B:8"]


def test_every_gpu_but_the_largest_has_a_larger_one(at_root):
    table = read_yaml("configs/gpus.yaml")["memory_gb"]
    larger = {gpu: gpus.larger(gpu) for gpu in table}
    assert [gpu for gpu, other in larger.items() if other is None] == [max(table, key=table.get)]
    assert all(table[other] > table[gpu] for gpu, other in larger.items() if other)


@pytest.mark.parametrize("wrong", ["H10", "H100:", "H100:9", "H100:0", "h100", "H100:4:4"])
def test_an_unknown_gpu_is_one_line(at_root, wrong):
    with pytest.raises(InputError, match=rf"^params\.yaml: modal\.gpu: '{wrong}' should be one of T4, "):
        container(wrong)
    with pytest.raises(InputError, match=rf"^configs/models/3B\.yaml: gpu: '{wrong}' should be one of T4, "):
        container(None, gpu=wrong)


def test_a_gpu_without_bfloat16_is_refused_for_a_model_in_bfloat16(at_root):
    remedy = r"choose another GPU, or `options\.dtype: float16` in configs/models/3B\.yaml"
    with pytest.raises(InputError, match=rf"^params\.yaml: modal\.gpu: T4 has no bfloat16, .*; {remedy}$"):
        container("T4:2")
    with pytest.raises(InputError, match=rf"^configs/models/3B\.yaml: gpu: T4 has no bfloat16, .*; {remedy}$"):
        container(None, gpu="T4")
    for dtype in ("float16", "float32"):
        assert container("T4", dtype=dtype).gpu == "T4"


def test_a_gap_in_the_file_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("configs").mkdir()
    gpus.FILE.write_text("dollars_per_second: {L4: 0.1}\nmemory_gb: {}\n")
    with pytest.raises(InputError, match=r"^configs/gpus\.yaml: memory_gb\.L4: is missing; add it$"):
        gpus.memory_gb("L4")
