"""The pipeline itself, through the real `dvc`, in a clone with a micro configuration. Minutes, so: slow."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from vlm.config.yaml_files import read_yaml

ROOT = Path(__file__).parents[1]
STANDIN = Path(os.environ.get("VLM_MODAL_STANDIN") or ROOT.parent / "shared" / "tools" / "fake_modal.py")
STAGES = ["prepare", "baseline_eval", "structured_eval", "finetune", "final_eval"]
MICRO = {
    "train: 1600": "train: 160",
    "validation: 160": "validation: 16",
    "test: 600": "test: 40",
    "batch_size: 32": "batch_size: 16",
    "max_new_tokens: 32": "max_new_tokens: 8",
    "epochs: 2": "epochs: 1",
    "batch_size: 16 ": "batch_size: 4 ",
    "eval_steps: 50": "eval_steps: 10",
}

pytestmark = pytest.mark.slow


class Clone:
    """A clone of the working tree, with a DVC cache and a user cache of its own."""

    def __init__(self, folder: Path, user_cache: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "XDG_CACHE_HOME": str(user_cache),
            "GIT_AUTHOR_NAME": "t",
            "GIT_AUTHOR_EMAIL": "t@localhost",
            "GIT_COMMITTER_NAME": "t",
            "GIT_COMMITTER_EMAIL": "t@localhost",
        }
        self.jobs = user_cache / "vlm-pipeline" / "jobs"

    def start(self, *command: str) -> subprocess.Popen:
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def run(self, *command: str, code: int = 0) -> str:
        process = self.start(*command)
        output, _ = process.communicate(timeout=900)
        assert process.returncode == code, output
        return output

    def repro(self, *arguments: str) -> list[str]:
        """The stages that `dvc repro` ran."""
        return re.findall(r"Running stage '(\w+)'", self.run("dvc", "repro", *arguments))

    def edit(self, file: str, old: str, new: str) -> None:
        path = self.folder / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    def results(self) -> dict[str, str]:
        """The hashes in dvc.lock of everything that equal runs have in common: all but the runtimes."""
        lock = read_yaml(self.folder / "dvc.lock")
        outs = [out for stage in lock["stages"].values() for out in stage["outs"]]
        return {out["path"]: out["md5"] for out in outs if not out["path"].startswith("metrics/runtime")}

    def kill_in_finetune(self, *command: str) -> None:
        """Starts `command` and kills it, and all that it started, once the training has a checkpoint."""
        process = self.start(*command)
        deadline = time.monotonic() + 300
        while not list(self.jobs.glob("finetuning-*/checkpoints/checkpoint-*/trainer_state.json")):
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def make_clone(tmp_path_factory: pytest.TempPathFactory, replacements: dict[str, str]) -> Clone:
    """A clone with other values in params.yaml, and no results."""
    folder = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in listed:
        if (ROOT / name).is_file() and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    made = Clone(folder, tmp_path_factory.mktemp("user-cache"))
    for old, new in replacements.items():
        made.edit("params.yaml", old, new)
    made.run("git", "init", "-q")
    made.run("git", "add", ".")
    made.run("git", "commit", "-qm", "micro")
    return made


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Clone:
    made = make_clone(tmp_path_factory, MICRO)
    made.run("dvc", "repro")
    made.run("git", "add", ".")
    made.run("git", "commit", "-qm", "results")
    return made


def test_every_stage_leaves_its_results(clone):
    metrics = {stage: json.loads((clone.folder / f"metrics/{stage}.json").read_text()) for stage in STAGES}
    assert metrics["prepare"]["test_rows"] == 40
    assert metrics["structured_eval"]["valid_rate"] == 1
    assert 0 <= metrics["final_eval"]["mcnemar_p"] <= 1
    for stage in STAGES:
        assert (clone.folder / f"metrics/runtime/{stage}.json").exists()
        assert all(not isinstance(value, dict | list) for value in metrics[stage].values())
    assert not list(clone.jobs.glob("*-*/"))  # finished work is not kept twice


def test_dvc_commands_show_the_results(clone):
    shown = clone.run("dvc", "metrics", "show")
    assert all(f"metrics/{stage}.json" in shown for stage in STAGES)
    clone.run("dvc", "plots", "show")
    page = clone.folder / "dvc_plots"
    html = (page / "index.html").read_text()
    evaluations = ["baseline_eval", "structured_eval", "final_eval"]
    pictures = {"prepare_samples", "final_eval_accuracy", *(f"{stage}_mistakes" for stage in evaluations)}
    assert {file.name for file in (page / "static").iterdir()} == {f"workspace_plots_{name}.png" for name in pictures}
    for title in ("Samples by class and split", "Loss while fine-tuning", "F1 by class"):
        assert title in html
    for stage in evaluations:
        assert re.search(rf"Confusion matrix, [^\n]*\({stage}\)", html)
    columns = clone.run("dvc", "exp", "show", "--csv").splitlines()[0]
    assert "prompt" not in columns
    assert "labels" not in columns


def test_nothing_to_do_does_nothing(clone):
    assert clone.repro() == []


def test_turning_the_fine_tuning_runs_two_stages(clone):
    output = clone.run("dvc", "exp", "run", "-S", "finetune.lora.r=4")
    assert re.findall(r"Running stage '(\w+)'", output) == ["finetune", "final_eval"]
    clone.run("git", "checkout", ".")
    clone.run("dvc", "checkout")
    assert clone.repro() == []


def test_where_a_model_can_run_changes_nothing(clone):
    clone.edit("configs/models/tiny.yaml", "runs_on_cpu: true", "runs_on_cpu: false")
    clone.edit("configs/models/tiny.yaml", "gpu: L4", "gpu: H100")
    clone.edit("params.yaml", "compute: auto", "compute: local")
    clone.edit("params.yaml", "containers: 1", "containers: 4")
    assert clone.repro() == []
    clone.run("git", "checkout", ".")


def test_bad_input_is_one_line_and_the_results_come_back(clone):
    before = clone.results()
    clone.edit("params.yaml", "dropout: 0.05", "dropout: 5")
    output = clone.run("dvc", "repro", code=255)
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert re.search(r"params\.yaml: finetune\.lora\.dropout: 5 should be less than 1", line)
    assert "Traceback" not in output
    clone.run("git", "checkout", ".")
    clone.run("dvc", "checkout")
    assert clone.results() == before
    assert clone.repro() == []


def test_killed_in_the_middle_of_training_goes_on_and_ends_with_the_same_adapter(clone):
    before = clone.results()
    clone.kill_in_finetune("dvc", "repro", "-f", "-s", "finetune")
    output = clone.run("dvc", "repro", "-f", "-s", "finetune")
    assert re.search(r"going on from the checkpoint of step [1-9]0\b", output)
    assert clone.results() == before


def test_a_killed_experiment_in_a_temporary_folder_goes_on_in_the_next(clone):
    clone.kill_in_finetune("dvc", "exp", "run", "--temp", "-S", "finetune.lora.r=2")
    output = clone.run("dvc", "exp", "run", "--temp", "-S", "finetune.lora.r=2")
    assert re.search(r"going on from the checkpoint of step [1-9]0\b", output)


@pytest.mark.skipif(not STANDIN.is_file(), reason=f"no stand-in for Modal at {STANDIN}; VLM_MODAL_STANDIN names it")
def test_on_modal_the_results_are_the_same(clone):
    before = clone.results()
    clone.edit("params.yaml", "compute: auto ", "compute: modal ")
    with tempfile.TemporaryDirectory(prefix="vlm", dir="/tmp") as state:  # short, for sockets
        log = clone.jobs.parent / "modal.json"
        standin = [sys.executable, str(STANDIN), "--log", str(log), "--state", state, "--"]
        clone.run(*standin, "dvc", "repro", "--force")
    assert clone.results() == before
    for name in ("baseline_eval", "structured_eval", "finetune", "final_eval_raw", "final_eval"):
        runtime = json.loads((clone.folder / f"metrics/runtime/{name}.json").read_text())
        assert runtime["gpu"] == "L4"
        assert runtime["gpu_seconds"] > 0
    seen = json.loads(log.read_text())
    assert [call["function"] for call in seen["calls"]] == ["conduct", "work"] * 5
    paths = [upload["path"] for upload in seen["uploads"]]
    assert len(paths) == len(set(paths))
    clone.run("git", "checkout", ".")
    clone.run("dvc", "checkout")
    assert not list(clone.jobs.glob("*-*/"))


def test_a_second_run_from_nothing_gives_the_same_bytes(clone):
    before = clone.results()
    clone.run("dvc", "repro", "--force")
    assert clone.results() == before
