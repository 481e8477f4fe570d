"""Against a stand-in for the Hub, which lives outside the repository."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vlm import dataset

ROOT = Path(__file__).parents[2]
STANDIN = Path(os.environ.get("VLM_HUB_STANDIN") or ROOT.parent / "shared" / "tools" / "fake_hub.py")
pytestmark = pytest.mark.skipif(
    not STANDIN.is_file(), reason=f"no stand-in for the Hub at {STANDIN}; VLM_HUB_STANDIN names it"
)

PREPARE = """
import sys
from pathlib import Path
from vlm import preparation
from vlm.errors import reported
from vlm.params import PrepareParams, load_task

if __name__ == "__main__":
    with reported():
        rows = PrepareParams(**eval(sys.argv[2]))
        print(preparation.prepare(load_task(sys.argv[1]), rows, 23, Path("data"), lambda event: None).metrics())
"""
FEW = "dict(train=20, validation=4, test=8)"


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    names = ["--only", "Paulescu", "--only", "microsoft", "--only", "Bingsu"]
    command = [sys.executable, STANDIN.with_name("make_hub_tree.py"), root, "--images", "120", *names]
    subprocess.run(command, check=True, capture_output=True)
    return root


@pytest.fixture
def work(tmp_path) -> Path:
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "run.py").write_text(PREPARE)
    return tmp_path


def run(work: Path, command: list[str], tree: Path | None, *options: str, **env: str) -> subprocess.CompletedProcess:
    """A command of Python's in `work`; with a tree, against the stand-in, which logs to log.jsonl."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(work / "hf"), **env}
    command = [sys.executable, *command]
    if tree is not None:
        command = [sys.executable, STANDIN, tree, "--log", work / "log.jsonl", *options, "--", *command]
    return subprocess.run(command, cwd=work, env=env, capture_output=True, text=True, check=False)


def data(work: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (work / "data").iterdir()}


def test_a_data_set_is_downloaded_split_by_split_and_then_comes_from_the_cache(work, tree):
    command = ["run.py", "human_action", FEW]
    online = run(work, command, tree)
    assert online.returncode == 0, online.stderr
    assert "'conflicts_dropped': 0" not in online.stdout and "'duplicates_dropped': 0" not in online.stdout
    assert "warning: configs/tasks/human_action.yaml: source.revision: not pinned" in online.stderr
    assert "data/test-" not in (work / "log.jsonl").read_text(), "the placeholders' split is not downloaded"
    before = data(work)
    assert set(before) == {"train.parquet", "validation.parquet", "test.parquet"}
    assert dataset.count(work / "data" / "test.parquet") == 8

    offline = run(work, command, None, HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    assert data(work) == before


def test_class_numbers_become_names(work, tree):
    result = run(work, ["run.py", "cats_vs_dogs", FEW], tree)
    assert result.returncode == 0, result.stderr
    ids, labels = dataset.ids_and_labels(work / "data" / "train.parquet")
    assert set(labels) == {"cat", "dog"}
    assert all(id_.startswith("train-") for id_ in ids)


def test_a_pinned_data_set_is_quiet_and_broken_connections_are_tried_again(work, tree):
    pinned = run(work, ["-m", "vlm.pin", "--task", "car_maker"], tree)
    assert pinned.returncode == 0, pinned.stderr
    commit = pinned.stdout.split()[-1]
    assert re.fullmatch("[0-9a-f]{40}", commit)
    assert f"revision: {commit}, train: train" in (work / "configs/tasks/car_maker.yaml").read_text()
    result = run(work, ["run.py", "car_maker", FEW], tree, "--fault", "reset:1:train-", "--fault", "503:1:test-")
    assert result.returncode == 0, result.stderr
    assert "warning" not in result.stderr
    assert dataset.ids_and_labels(work / "data" / "test.parquet")[0][0].startswith("test-")


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (("Paulescu", "Nobody"), [], "source.hub: 'Nobody/stanford_cars' is not on the Hub, or is private"),
        (("revision: null", "revision: v9"), [], "source.hub: 'Paulescu/stanford_cars' has no revision 'v9'"),
        (("test: test", "test: tset"), [], "source.test: 'Paulescu/stanford_cars' has no parquet files of a split 'tset'; its splits are train, test"),
        (("label: maker", "label: makr"), [], "columns.label: 'makr' is no column of 'Paulescu/stanford_cars' (train); it has image, maker, model, year"),
        (("smart]", "Smart]"), [], "labels: 'smart', the label of"),
        (("label: maker", "label: maker"), ["--require-token", "x", "--gated", "Paulescu/stanford_cars"], "source.hub: 'Paulescu/stanford_cars' is gated: accept its terms"),
    ],
    ids=["repository", "revision", "split", "column", "label", "gated"],
)  # fmt: skip
def test_wrong_input_is_one_line(work, tree, change, options, message):
    file = work / "configs/tasks/car_maker.yaml"
    file.write_text(file.read_text().replace(*change))
    result = run(work, ["run.py", "car_maker", FEW], tree, *options)
    assert result.returncode == 1
    assert f"error: configs/tasks/car_maker.yaml: {message}" in result.stderr.splitlines()[-1]
    assert not (work / "data").exists() or not data(work)


def test_without_network_and_cache_it_says_so(work):
    result = run(work, ["run.py", "car_maker", FEW], None, HF_HUB_OFFLINE="1")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].endswith(
        "source.hub: 'Paulescu/stanford_cars' is not in the cache; unset HF_HUB_OFFLINE to download it"
    )
