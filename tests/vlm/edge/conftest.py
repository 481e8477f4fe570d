"""The embedded model as files for llama.cpp."""

from pathlib import Path

import pytest

from vlm.config.params import load_params
from vlm.edge import gguf_files
from vlm.edge.classifier import Classifier
from vlm.models import loading

ROOT = Path(__file__).parents[3]


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
