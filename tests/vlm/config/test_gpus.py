from pathlib import Path

import pytest

from vlm.config import gpus
from vlm.config.errors import InputError
from vlm.config.models import load_model
from vlm.config.yaml_files import read_yaml


def test_prices_and_unknown_gpus(at_root):
    assert gpus.dollars_per_second("H100", "k") == read_yaml("configs/gpus.yaml")["dollars_per_second"]["H100"]
    assert gpus.dollars_per_second("H100:4", "k") == 4 * gpus.dollars_per_second("H100", "k")
    for wrong in ("H10", "H100:", "H100:9", "H100:0", "h100", "H100:4:4"):
        with pytest.raises(InputError, match=rf"params\.yaml: modal\.gpu: '{wrong}' should be one of T4, "):
            gpus.dollars_per_second(wrong, "params.yaml: modal.gpu")
    for file in Path("configs/models").glob("*.yaml"):
        assert gpus.dollars_per_second(load_model(file.stem).gpu, "k") > 0
