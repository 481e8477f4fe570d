import shutil
from pathlib import Path

import pytest

from stages import check
from vlm.config.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def params(tmp_path, monkeypatch):
    """params.yaml in a folder of its own, with configs/ and models/."""
    for name in ("configs", "models"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "params.yaml"


def test_the_settings_in_the_repository_are_valid(params, capsys):
    check.main()
    assert capsys.readouterr().out == "check: the settings are valid; tiny runs on this machine\n"


def test_the_candidates_of_a_prompt_search_are_read_only_if_there_is_one(params):
    text = params.read_text().replace("candidates: null", "candidates: nope")
    params.write_text(text)
    check.main()
    params.write_text(text.replace("prompt_search:\n  enabled: false", "prompt_search:\n  enabled: true"))
    with pytest.raises(
        InputError, match=r"there is no file configs/prompts/nope\.yaml; configs/prompts has car_badges"
    ):
        check.main()
