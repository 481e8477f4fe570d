import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vlm.commands.plan import stages_to_run

ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent
STAGES = ["prepare", "baseline_eval", "structured_eval", "finetune", "final_eval", "edge_eval"]


# An nvidia-smi for two GPUs.
DRIVER = """#!/bin/sh
case "$1" in
--list-gpus) echo "GPU 0: NVIDIA Large (UUID: GPU-1)"; echo "GPU 1: NVIDIA Small (UUID: GPU-2)" ;;
--id=*0*) echo "NVIDIA Large, 8000" ;;
esac
case "$1" in --id=*1*) echo "NVIDIA Small, 100" ;; esac
"""


def run(folder, *command, code=0, environment=()):
    path = {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(folder)}
    environment = os.environ | path | dict(environment)
    for role in ("AUTHOR", "COMMITTER"):
        environment |= {f"GIT_{role}_NAME": "t", f"GIT_{role}_EMAIL": "t@localhost"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def plan(folder):
    """The cells of the printed table, by stage."""
    lines = run(folder, sys.executable, "-m", "vlm", "plan").splitlines()
    starts = [lines[0].index(word) for word in ("stage", "runs", "on", "samples", "time", "dollars", "estimated from")]
    cells = [[line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)] for line in lines[1:]]
    return {row[0]: row[1:] for row in cells}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A separate repository with the files of the working tree, without data."""
    folder = tmp_path_factory.mktemp("checkout")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in listed:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "working tree"]):
        run(folder, "git", *command)
    return folder


def edit(folder, file, old, new):
    path = folder / file
    text = path.read_text()
    assert re.search(old, text)
    path.write_text(re.sub(old, new, text))


def test_a_plan_for_this_machine_uses_times_of_local_runs(checkout):
    table = plan(checkout)
    assert [name for name in table if name in STAGES] == STAGES
    assert table["measure@final_eval"][:2] == ["yes", ""]
    for stage in STAGES:
        runs, on, _, time, dollars, source = table[stage]
        assert runs == "yes"
        assert on == "this machine"
        assert re.fullmatch(r"0:0\d:\d\d", time)
        assert (dollars, source) == ("0", "here")
    runtime = json.loads((checkout / "metrics/runtime/finetune.json").read_text())
    minutes, seconds = map(int, table["finetune"][3].split(":")[1:])
    assert 60 * minutes + seconds == pytest.approx(runtime["seconds"], rel=0.05)


def test_the_export_runs_here_and_takes_the_time_of_the_last_one(checkout):
    file = checkout / "metrics/runtime/export.json"
    before = file.read_text() if file.exists() else None
    try:
        file.write_text(json.dumps({"seconds": 21.4}))
        assert plan(checkout)["export"] == ["yes", "this machine", "", "0:00:21", "0", "here"]
        file.write_text(json.dumps({"samples": 0, "seconds": 0.0}))  # nothing was exported
        row = plan(checkout)["export"]  # of a commit that exported something, if there is one
        assert row[:3] == ["yes", "this machine", ""]
        assert row[3] == "?" or (re.fullmatch(r"0:0\d:\d\d", row[3]) and row[5] != "here" and row[3] != "0:00:00")
    finally:
        file.unlink() if before is None else file.write_text(before)
    edit(checkout, "params.yaml", r"sweep: \[\] ", "sweep: [F16, Q8_0] ")
    edit(checkout, "params.yaml", r"samples: 600 ", "samples: 100 ")
    try:
        assert plan(checkout)["edge_eval"][2] == "300"  # of each of three classifiers
    finally:
        edit(checkout, "params.yaml", r"sweep: \[F16, Q8_0\] ", "sweep: [] ")
        edit(checkout, "params.yaml", r"samples: 100 ", "samples: 600 ")


def test_the_time_of_an_earlier_run_is_scaled_by_the_number_of_samples(checkout):
    file = checkout / "metrics/runtime/prepare.json"
    before = file.read_text()
    file.write_text(json.dumps({"samples": 1180, "seconds": 10.0, "samples_per_second": 118.0}))
    try:
        assert plan(checkout)["prepare"][2:4] == ["2360", "0:00:20"]
    finally:
        file.write_text(before)


def test_robustness_takes_time_only_if_it_is_switched_on(checkout):
    assert plan(checkout)["robustness"] == ["yes", "", "", "", "", ""]
    edit(checkout, "params.yaml", "enabled: false", "enabled: true")
    try:
        # Two models, 200 samples, each as it is and under 7 corruptions at 3 severities; never run before
        assert plan(checkout)["robustness"][:4] == ["yes", "this machine", "8800", "?"]
    finally:
        edit(checkout, "params.yaml", "enabled: true", "enabled: false")


def test_a_run_in_progress_is_named(checkout):
    """As DVC notes it: the reader's or writer's process, by path."""
    lock = checkout / ".dvc" / "tmp" / "rwlock"
    lock.parent.mkdir(exist_ok=True)
    holder = {"pid": os.getpid(), "cmd": "dvc repro"}
    lock.write_text(json.dumps({"write": {str(checkout / "configs/tasks/car_badges.yaml"): holder}, "read": {}}))
    try:
        error = run(checkout, sys.executable, "-m", "vlm", "plan", code=1)
    finally:
        lock.unlink()
    assert re.fullmatch(rf"error: a run is .*\(process {os.getpid()}: dvc repro\).*\n", error)


def last_line(folder, **environment):
    return run(folder, sys.executable, "-m", "vlm", "plan", environment=environment).splitlines()[-1]


def test_the_memory_of_a_fine_tune_is_not_known_if_the_data_will_change(checkout, make_split):
    """Even if data/train.parquet exists: it may be that of another task or size."""
    edit(checkout, "params.yaml", "compute: auto ", "compute: modal ")
    split = checkout / "data/train.parquet"
    try:
        assert last_line(checkout) == "finetune on L4: memory not known until prepare has run"
        shutil.copyfile(make_split("train", 2), split)
        assert last_line(checkout) == "finetune on L4: memory not known until prepare has run"
    finally:
        split.unlink(missing_ok=True)
        edit(checkout, "params.yaml", "compute: modal ", "compute: auto ")


@pytest.fixture
def prepared(checkout, make_split):
    """The checkout with small splits that DVC takes for the result of `prepare`."""
    splits = [checkout / "data" / f"{name}.parquet" for name in ("train", "validation", "test")]
    for split in splits:
        shutil.copyfile(make_split("train", 2), split)
    run(checkout, "dvc", "commit", "--force", "prepare")
    # What a trained vision tower needs is only known when the job runs.
    edit(checkout, "params.yaml", "modules: null ", "modules: language+projector ")
    yield checkout
    run(checkout, "git", "checkout", "-q", ".")
    for split in splits:
        split.unlink()


def test_the_last_line_says_how_a_fine_tune_on_a_gpu_fits_into_memory(prepared):
    edit(prepared, "params.yaml", "compute: auto ", "compute: modal ")
    assert last_line(prepared) == "finetune on L4: 16 of 16 samples at once, about 1 of 24 GB (estimate)"


def test_the_memory_of_gpus_here_is_that_of_the_visible_ones(prepared, tmp_path):
    """And if nothing fits, the smallest choice is not shown as if it did."""
    driver = tmp_path / "nvidia-smi"
    driver.write_text(DRIVER)
    driver.chmod(0o755)
    path = f"{BIN}{os.pathsep}{tmp_path}{os.pathsep}{os.environ['PATH']}"
    assert last_line(prepared, PATH=path, CUDA_VISIBLE_DEVICES="0") == (
        "finetune on Large: 16 of 16 samples at once, about 1 of 8 GB (estimate)"
    )
    assert last_line(prepared, PATH=path, CUDA_VISIBLE_DEVICES="0,1") == (
        "finetune on Small:2: may not fit: 1 of 8 samples at once on each with gradient checkpointing would take about "
        "1 of 0 GB (estimate); lower image.max_tokens or use a larger GPU"
    )


def test_a_plan_for_modal_uses_times_from_git_history_for_the_same_model_and_gpu(checkout):
    edit(checkout, "dvc.lock", "model: tiny", "model: 450M")
    for name, (samples, containers) in {"structured_eval": (508, 1), "final_eval": (340, 2)}.items():
        runtime = {"samples": samples, "seconds": 100.0, "gpu": "L4", "gpu_seconds": containers * 130.0}
        runtime |= {"containers": containers}
        (checkout / f"metrics/runtime/{name}.json").write_text(json.dumps(runtime))
    run(checkout, "git", "commit", "-qam", "a run on Modal")
    commit = run(checkout, "git", "rev-parse", "--short", "HEAD").strip()
    run(checkout, "git", "revert", "--no-edit", "HEAD")
    edit(checkout, "params.yaml", "model: tiny\n", "model: 450M\n")
    edit(checkout, "params.yaml", "compute: auto ", "compute: modal ")
    table = plan(checkout)
    assert {table[stage][1] for stage in ("prepare", "export", "edge_eval")} == {"this machine"}
    # 1,016 samples instead of 508, 256 of them for the label prior, and 30 s to start; final_eval ran in two containers, each for 100 s
    assert table["structured_eval"] == ["yes", "Modal, L4", "1016", "0:03:50", "0.06", commit]
    assert table["final_eval"] == ["yes", "Modal, L4", "1360", "0:13:50", "0.22", commit]
    assert table["finetune"][3:] == ["?", "?", "no earlier run of 450M on L4"]
    edit(checkout, "params.yaml", "containers: 1 ", "containers: 4 ")
    table = plan(checkout)
    assert table["structured_eval"][3:5] == ["0:01:20", "0.09"]  # four containers have to start
    assert table["final_eval"][3:5] == ["0:03:50", "0.25"]
    edit(checkout, "params.yaml", "gpu: null ", "gpu: H100:2 ")
    table = plan(checkout)
    assert table["finetune"][1] == "Modal, H100:2"
    assert table["structured_eval"][1] == "Modal, H100"
    edit(checkout, "params.yaml", "gpu: H100:2 ", "gpu: H10 ")
    assert "modal.gpu: 'H10' should be one of" in run(checkout, sys.executable, "-m", "vlm", "plan", code=1)
    edit(checkout, "params.yaml", "gpu: H10 ", "gpu: T4 ")
    assert "modal.gpu: T4 has no bfloat16" in run(checkout, sys.executable, "-m", "vlm", "plan", code=1)


def test_a_stage_runs_after_the_one_that_writes_a_file_or_a_folder_of_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")
    stages = {
        "make": {"cmd": "mkdir -p made/one && cp source made/one/file", "deps": ["source"], "outs": ["made/one"]},
        "of_file": {"cmd": "cp made/one/file of_file", "deps": ["made/one/file"], "outs": ["of_file"]},
        "of_folder": {"cmd": "ls made > of_folder", "deps": ["made"], "outs": ["of_folder"]},
        "of_nothing": {"cmd": "cp other of_nothing", "deps": ["other"], "outs": ["of_nothing"]},
    }
    Path("dvc.yaml").write_text(json.dumps({"stages": stages}))  # JSON is YAML
    for name in ("source", "other"):
        Path(name).write_text("1")
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"], ["dvc", "repro", "-q"]):
        run(tmp_path, *command)
    assert set(stages_to_run().values()) == {None}
    Path("source").write_text("2")
    expected = {"make": "yes", "of_file": "after make", "of_folder": "after make", "of_nothing": None}
    assert stages_to_run() == expected
