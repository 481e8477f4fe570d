import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent
STAGES = ["prepare", "baseline_eval", "structured_eval", "finetune", "final_eval"]


def run(folder, *command, code=0):
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(folder)}
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
    assert list(table)[:5] == STAGES
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


def test_a_plan_for_modal_uses_times_from_git_history_for_the_same_model_and_gpu(checkout):
    edit(checkout, "dvc.lock", "model: tiny", "model: 450M")
    for name in ("structured_eval", "final_eval"):
        runtime = {"samples": 300, "seconds": 100.0, "gpu": "L4", "gpu_seconds": 130.0}
        (checkout / f"metrics/runtime/{name}.json").write_text(json.dumps(runtime))
    run(checkout, "git", "commit", "-qam", "a run on Modal")
    commit = run(checkout, "git", "rev-parse", "--short", "HEAD").strip()
    run(checkout, "git", "revert", "--no-edit", "HEAD")
    edit(checkout, "params.yaml", "model: tiny\n", "model: 450M\n")
    edit(checkout, "params.yaml", "compute: auto ", "compute: modal ")
    table = plan(checkout)
    assert table["prepare"][1] == "this machine"
    # 600 samples instead of 300, and 30 s to start
    assert table["structured_eval"] == ["yes", "Modal, L4", "600", "0:03:50", "0.05", commit]
    assert table["final_eval"] == ["yes", "Modal, L4", "1200", "0:07:10", "0.10", commit]
    assert table["finetune"][3:] == ["?", "?", "no earlier run of 450M on L4"]
    edit(checkout, "params.yaml", "gpu: null ", "gpu: H100:2 ")
    table = plan(checkout)
    assert table["finetune"][1] == "Modal, H100:2"
    assert table["structured_eval"][1] == "Modal, H100"
    edit(checkout, "params.yaml", "gpu: H100:2 ", "gpu: H10 ")
    assert "modal.gpu: 'H10' should be one of" in run(checkout, sys.executable, "-m", "vlm", "plan", code=1)
