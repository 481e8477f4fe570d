"""Data sets and models from the Hub, against a stand-in for it (tests/standins)."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import platformdirs
import pyarrow.parquet as pq
import pytest

from vlm.data import dataset

ROOT = Path(__file__).parents[3]
STANDINS = ROOT / "tests" / "standins"

PREPARE = """
import sys
from pathlib import Path
from vlm.sources import preparation
from vlm.config.errors import reported
from vlm.config.params import PrepareParams
from vlm.config.task import load_task

if __name__ == "__main__":
    with reported():
        rows = PrepareParams(**eval(sys.argv[2]))
        print(preparation.prepare(load_task(sys.argv[1]), rows, 23, Path("data"), lambda event: None).details())
"""
LOAD = """
import sys
from vlm.config import pins
from vlm.models import loading
from vlm.config.errors import reported
from vlm.config.models import load_model
from vlm.config.params import ImageParams

if __name__ == "__main__":
    with reported():
        config = load_model(sys.argv[1])
        loading.load(config, ImageParams())
        print(loading.hub_revision(config))
"""
FEW = "dict(train=20, validation=4, test=8)"


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    names = ["--only", "Paulescu", "--only", "microsoft", "--only", "Bingsu", "--only", "450M", "--light"]
    command = [sys.executable, STANDINS / "make_hub_tree.py", root, "--images", "120", *names]
    subprocess.run(command, check=True, capture_output=True)
    return root


@pytest.fixture
def work(tmp_path) -> Path:
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    for file in (tmp_path / "configs" / "tasks").glob("*.yaml"):  # the stand-in's data sets are smaller
        file.write_text(re.sub(r"expect: .*", "expect: {revision: null, train: null}", file.read_text()))
    (tmp_path / "run.py").write_text(PREPARE)
    (tmp_path / "load.py").write_text(LOAD)
    return tmp_path


def run(work: Path, command: list[str], tree: Path | None, *options: str, **env: str) -> subprocess.CompletedProcess:
    """Runs Python with `command` in `work`; with a tree, against the stand-in, which logs to log.jsonl."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(work / "hf"), **env}
    command = [sys.executable, *command]
    if tree is not None:
        command = [
            sys.executable,
            STANDINS / "fake_hub.py",
            tree,
            "--log",
            work / "log.jsonl",
            *options,
            "--",
            *command,
        ]
    return subprocess.run(command, cwd=work, env=env, capture_output=True, text=True, check=False)


def data(work: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (work / "data").iterdir()}


def test_a_data_set_is_downloaded_by_split_and_then_read_from_the_cache(work, tree):
    command = ["run.py", "human_action", FEW]
    online = run(work, command, tree)
    assert online.returncode == 0, online.stderr
    assert "'conflicts_left_out': 0" not in online.stdout and "'duplicates_left_out': 0" not in online.stdout
    assert "warning: configs/tasks/human_action.yaml: source.revision: not pinned" in online.stderr
    assert "data/test-" not in (work / "log.jsonl").read_text(), "the split with placeholder labels is not downloaded"
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


def test_a_pinned_data_set_causes_no_warning_and_broken_connections_are_retried(work, tree):
    found = run(work, ["-m", "vlm", "pin", "--task", "car_maker"], tree)
    assert found.returncode == 0, found.stderr
    commit = found.stdout.split()[-1]
    assert re.fullmatch("[0-9a-f]{40}", commit)
    text = (work / "configs/tasks/car_maker.yaml").read_text()
    assert f"  revision: {commit}\n  train: train" in text
    assert f"expect: {{revision: {commit}, train: 120" in text
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
        (("label: maker", "label: maker, group: car"), [], "columns.group: 'car' is no column of 'Paulescu/stanford_cars' (train); it has image,"),
        (("smart]", "Smart]"), [], "labels: 'smart', the label of"),
        (("label: maker", "label: maker"), ["--require-token", "x", "--gated", "Paulescu/stanford_cars"], "source.hub: 'Paulescu/stanford_cars' is gated: accept its terms"),
    ],
    ids=["repository", "revision", "split", "column", "group", "label", "gated"],
)  # fmt: skip
def test_wrong_input_is_reported_in_one_line(work, tree, change, options, message):
    file = work / "configs/tasks/car_maker.yaml"
    file.write_text(file.read_text().replace(*change))
    result = run(work, ["run.py", "car_maker", FEW], tree, *options)
    assert result.returncode == 1
    assert f"error: configs/tasks/car_maker.yaml: {message}" in result.stderr.splitlines()[-1]
    assert not (work / "data").exists() or not data(work)


def test_rows_of_one_group_are_in_one_split(work, tree):
    file = work / "configs/tasks/car_maker.yaml"
    text = file.read_text().replace("label: maker}", "label: maker, group: model}").replace("test: test", "test: null")
    file.write_text(text)
    result = run(work, ["run.py", "car_maker", "dict(train=None, validation=8, test=24)"], tree)
    assert result.returncode == 0, result.stderr
    shards = sorted((work / "hf").rglob("train-*.parquet"))
    models = [model for shard in shards for model in pq.read_table(shard, columns=["model"])["model"].to_pylist()]
    splits_of: dict[str, set[str]] = {}
    for split in ("train", "validation", "test"):
        for id_ in dataset.ids_and_labels(work / "data" / f"{split}.parquet")[0]:
            splits_of.setdefault(models[int(id_.removeprefix("train-"))], set()).add(split)
    assert len(models) == 120 > len(splits_of)
    assert all(len(splits) == 1 for splits in splits_of.values())


def downloaded(work: Path) -> list[str]:
    """The paths of the files whose content was requested."""
    entries = [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]
    return [entry["path"] for entry in entries if entry["method"] == "GET" and "/resolve/" in entry["path"]]


def test_the_second_run_downloads_no_file(work, tree):
    command = ["run.py", "car_maker", FEW]
    assert run(work, command, tree).returncode == 0
    assert downloaded(work)
    (work / "log.jsonl").unlink()
    again = run(work, command, tree)
    assert again.returncode == 0, again.stderr
    assert not (work / "log.jsonl").exists() or not downloaded(work)


def test_few_rows_need_only_some_files_and_more_train_rows_do_not_change_the_other_splits(work, tree):
    file = work / "configs/tasks/car_maker.yaml"
    found = run(work, ["-m", "vlm", "pin", "--task", "car_maker"], tree)
    assert found.returncode == 0, found.stderr
    few = run(work, ["run.py", "car_maker", "dict(train=4, validation=2, test=4)"], tree)
    assert few.returncode == 0, few.stderr
    fetched = {path.name for path in (work / "hf").rglob("*.parquet")}
    assert len(fetched) < 5, "3 files of train and 2 of test"
    before = (data(work)["test.parquet"], data(work)["validation.parquet"])
    more = run(work, ["run.py", "car_maker", "dict(train=60, validation=2, test=4)"], tree)
    assert more.returncode == 0, more.stderr
    assert (data(work)["test.parquet"], data(work)["validation.parquet"]) == before
    assert len({path.name for path in (work / "hf").rglob("*.parquet")}) > len(fetched)
    assert file.exists()


def test_downloads_survive_many_faults_of_the_hub(work, tree):
    faults = [
        "--fail-after-bytes",
        "3000",
        "--fault",
        "429:1:api",
        "--fault",
        "503:2:train-",
        "--fault",
        "reset:1:test-",
    ]
    result = run(work, ["run.py", "car_maker", FEW], tree, *faults)
    assert result.returncode == 0, result.stderr
    before = data(work)
    shutil.rmtree(work / "hf")
    assert run(work, ["run.py", "car_maker", FEW], tree).returncode == 0
    assert data(work) == before


def test_a_changed_data_set_is_an_error_until_it_is_pinned_or_its_revision_is_changed(work, tree):
    file = work / "configs/tasks/car_maker.yaml"
    text = (ROOT / "configs/tasks/car_maker.yaml").read_text()
    file.write_text(text)
    changed = run(work, ["run.py", "car_maker", FEW], tree)
    assert changed.returncode == 1
    assert changed.stderr.splitlines()[-1] == (
        "error: configs/tasks/car_maker.yaml: source.expect.train: 6860 rows, but 'Paulescu/stanford_cars' has 120: the "
        "data set has changed; `python -m vlm pin --task car_maker` takes it as it is now"
    )
    file.write_text(text.replace("  revision: null", "  revision: main"))
    assert run(work, ["run.py", "car_maker", FEW], tree).returncode == 0
    file.write_text(text)
    assert run(work, ["-m", "vlm", "pin", "--task", "car_maker"], tree).returncode == 0
    assert run(work, ["run.py", "car_maker", FEW], tree).returncode == 0


def test_a_label_of_several_columns(work, tree):
    import pyarrow.parquet as pq

    rows = [
        row
        for file in sorted((tree / "datasets/Paulescu/stanford_cars/data").glob("*"))
        for row in pq.read_table(file, columns=["maker", "model", "year"]).to_pylist()
    ]
    classes = sorted({" ".join(row.values()) for row in rows})
    file = work / "configs/tasks/car_model.yaml"
    text = file.read_text()
    start, end = text.index("  - AM General"), text.index("flip:")
    file.write_text(text[:start] + "".join(f"  - {name}\n" for name in classes) + text[end:])
    result = run(work, ["run.py", "car_model", FEW], tree)
    assert result.returncode == 0, result.stderr
    assert set(dataset.ids_and_labels(work / "data" / "train.parquet")[1]) <= set(classes)


def test_unpinned_stages_use_the_same_commit_after_the_branch_moves(work, tree, tmp_path):
    moving = tmp_path / "moving"
    shutil.copytree(tree, moving)
    first = run(work, ["load.py", "450M"], moving)
    assert first.returncode == 0, first.stderr
    commit = first.stdout.split()[-1]
    assert f"not pinned; all stages on this machine use {commit}, which was the newest commit on 20" in first.stderr
    with (moving / "models/LiquidAI/LFM2-VL-450M/README.md").open("a") as file:
        file.write("more\n")
    (work / "log.jsonl").unlink()
    assert run(work, ["load.py", "450M"], moving).stdout.split()[-1] == commit
    assert not (work / "log.jsonl").exists() or not downloaded(work)
    newest = run(work, ["-m", "vlm", "pin", "--model", "450M"], moving).stdout.split()[-1]
    assert newest != commit
    assert f"revision: {newest} " in (work / "configs/models/450M.yaml").read_text()
    loaded = run(work, ["load.py", "450M"], moving)
    assert loaded.stdout.split()[-1] == newest
    assert "warning" not in loaded.stderr


def test_a_gated_model_needs_a_token_which_is_not_written_to_any_file(work, tree):
    options = ["--require-token", "hf_secret123", "--gated", "LiquidAI/LFM2-VL-450M"]
    without = run(work, ["load.py", "450M"], tree, *options)
    assert without.returncode == 1
    (line,) = [line for line in without.stderr.splitlines() if "error" in line]
    assert line.startswith("error: configs/models/450M.yaml: id: 'LiquidAI/LFM2-VL-450M' is gated: accept its terms")
    assert "HF_TOKEN" in line
    (work / "log.jsonl").unlink()
    with_token = run(work, ["load.py", "450M"], tree, *options, HF_TOKEN="hf_secret123")
    assert with_token.returncode == 0, with_token.stderr
    written = [
        file
        for folder in (work, platformdirs.user_cache_path("vlm-pipeline"))
        for file in folder.rglob("*")
        if file.is_file()
    ]
    assert len(written) > 20
    assert not [file for file in written if file.name != "log.jsonl" and b"hf_secret123" in file.read_bytes()]


def test_weights_in_other_formats_are_not_loaded(work, tree, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tree / "models", other / "models")
    folder = other / "models/LiquidAI/LFM2-VL-450M"
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    result = run(work, ["load.py", "450M"], other)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        "error: configs/models/450M.yaml: id: 'LiquidAI/LFM2-VL-450M' has no weights as safetensors (model.safetensors); "
        "other formats can run code when they are loaded, and are not"
    )
    assert "pytorch_model.bin" not in (work / "log.jsonl").read_text()


def test_a_model_loads_offline_from_the_cache_and_its_absence_is_reported(work, tree):
    assert run(work, ["load.py", "450M"], tree).returncode == 0
    offline = run(work, ["load.py", "450M"], None, HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    shutil.rmtree(work / "hf")
    gone = run(work, ["load.py", "450M"], None, HF_HUB_OFFLINE="1")
    assert gone.returncode == 1
    assert gone.stderr.splitlines()[-1].endswith("is not in the cache; unset HF_HUB_OFFLINE to download it")


def test_a_missing_network_is_reported(work):
    result = run(work, ["run.py", "car_maker", FEW], None, HF_ENDPOINT="http://127.0.0.1:9")
    assert result.returncode == 1
    line = result.stderr.splitlines()[-1]
    assert "is not in the cache and cannot be downloaded: " in line
    assert line.endswith("check the network and try again")


def test_offline_a_data_set_that_is_not_cached_is_reported(work):
    result = run(work, ["run.py", "car_maker", FEW], None, HF_HUB_OFFLINE="1")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].endswith(
        "source.hub: 'Paulescu/stanford_cars' is not in the cache; unset HF_HUB_OFFLINE to download it"
    )
