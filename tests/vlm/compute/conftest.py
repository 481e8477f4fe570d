"""Shared by the tests of complete jobs on Modal."""

import os
import shutil
from pathlib import Path

import pytest

from tests.vlm.compute.places import ROOT, Place


@pytest.fixture(scope="session")
def here(tmp_path_factory):
    before = Path.cwd()
    os.chdir(ROOT)
    place = Place(tmp_path_factory.mktemp("place"))
    os.chdir(before)
    yield place
    shutil.rmtree(place.state)


@pytest.fixture(scope="session")
def locally(here):
    """The results of jobs that ran on this machine, by kind."""
    for kind in ("structured", "finetune"):
        here.run(kind, "local", f"local-{kind}")
    return {kind: here.results(f"local-{kind}") for kind in ("structured", "finetune")}
