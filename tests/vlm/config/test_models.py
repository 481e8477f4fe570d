from pathlib import Path

import pytest

from vlm.config import pins
from vlm.config.errors import InputError
from vlm.config.models import ModelConfig


@pytest.mark.parametrize("copy", ["standalone/tmpx1", "tmpx2"], ids=["temp", "queue"])
def test_a_relative_folder_is_found_from_dvcs_copy_of_the_repository(copy, tmp_path, monkeypatch):
    """`dvc exp run --temp` and `--queue` run a stage in a copy under .dvc/tmp/exps that has only what is in git."""
    model = ModelConfig(name="own", id="../own")
    copied = tmp_path / "repository" / ".dvc/tmp/exps" / copy
    copied.mkdir(parents=True)
    monkeypatch.chdir(copied)
    assert model.folder is None
    with pytest.raises(InputError, match=r"configs/models/own\.yaml: id: there is no folder '\.\./own'"):
        pins.resolved_model(model)

    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "config.json").write_text("{}")
    assert model.folder.samefile(tmp_path / "own")
    assert pins.resolved_model(model) == model
    pins.verify_model(model.model_copy(update={"revision": pins.folder_hash(tmp_path / "own")}))
    with pytest.raises(InputError, match="has changed"):
        pins.verify_model(model.model_copy(update={"revision": "sha256:" + "0" * 64}))

    monkeypatch.chdir(tmp_path / "repository")
    assert model.folder == Path("../own")
