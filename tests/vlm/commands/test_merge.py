import argparse

import pytest

from vlm.commands import merge
from vlm.config.errors import InputError


def test_a_whole_model_has_nothing_to_merge(at_root, tmp_path):
    (tmp_path / "base_model.json").write_text('{"id": "models/tiny", "revision": null}')
    arguments = argparse.Namespace(adapter=str(tmp_path), output=tmp_path / "merged")
    with pytest.raises(InputError, match=r": is already a whole model, so there is nothing to merge; copy the folder$"):
        merge.main(arguments)
    assert not arguments.output.exists()
