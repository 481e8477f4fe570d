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

import psutil
import pytest

from vlm.config.yaml_files import read_yaml
from vlm.training.checkpoints import last_checkpoint

ROOT = Path(__file__).parents[1]
STANDINS = ROOT / "tests" / "standins"
GPU_STAGES = ["baseline_eval", "structured_eval", "finetune", "final_eval", "probe"]
BASELINES = ["majority", "probe_nearest", "probe_linear"]
MEASURED = ["baseline_eval", "structured_eval", "final_eval_raw", "final_eval"]
METRICS = ["prepare", "finetune", *BASELINES, *MEASURED, "compare", "edge_eval", "edge"]
MICRO = {
    "train: 1600": "train: 160",
    "validation: 160": "validation: 16",
    "test: 600": "test: 40",
    "batch_size: 32": "batch_size: 16",
    "max_new_tokens: 32": "max_new_tokens: 8",
    "epochs: null": "epochs: 1",
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
            "SHELL": "/bin/sh",  # that runs DVC's commands, whatever shell the tests are started from
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
        return re.findall(r"Running stage '([\w@]+)'", self.run("dvc", "repro", *arguments))

    def edit(self, file: str, old: str, new: str) -> None:
        path = self.folder / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    def results(self) -> dict[str, str]:
        """The hashes in dvc.lock of what equal runs have in common: all but the runtimes, and the report, which has them."""
        lock = read_yaml(self.folder / "dvc.lock")
        outs = [out for stage in lock["stages"].values() for out in stage.get("outs", [])]  # check has none
        return {out["path"]: out["md5"] for out in outs if not out["path"].startswith(("metrics/runtime", "reports"))}

    def start_finetune(self, *command: str) -> subprocess.Popen:
        """Starts `command` and waits until the training has a checkpoint."""
        before = set(self.jobs.glob("finetuning-*/checkpoints"))  # of other jobs, which were killed earlier
        process = self.start(*command)
        deadline = time.monotonic() + 300
        while not any(last_checkpoint(folder) for folder in set(self.jobs.glob("finetuning-*/checkpoints")) - before):
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return process

    def kill_in_finetune(self, *command: str) -> None:
        """Starts `command` and kills it, and all that it started, once the training has a checkpoint."""
        process = self.start_finetune(*command)
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


def test_every_stage_leaves_its_results_and_says_them_in_a_line(tmp_path_factory):
    clone = make_clone(tmp_path_factory, MICRO)
    lines = clone.run("dvc", "repro").splitlines()
    metrics = {name: json.loads((clone.folder / f"metrics/{name}.json").read_text()) for name in METRICS}
    details = {name: json.loads((clone.folder / f"plots/{name}/details.json").read_text()) for name in METRICS}
    assert metrics["prepare"] == {"test_changed": 0}
    correctable = {"structured_eval", "final_eval"}
    assert all(set(metrics[name]) == {"accuracy", "plain_accuracy"} for name in correctable)
    assert all(set(metrics[name]) == {"accuracy"} for name in {*BASELINES, *MEASURED, "edge_eval"} - correctable)
    assert details["structured_eval"]["prior"]["samples"] == 160
    assert metrics["final_eval"]["accuracy"] == metrics["final_eval"]["plain_accuracy"]
    assert set(metrics["edge"]) == {"changed"}
    assert details["edge"]["largest_change"] < 0.2
    assert {"low", "high", "valid", "lenient_accuracy"} < set(details["final_eval_raw"])
    assert {"low", "high", "macro_f1", "log_loss", "ece"} < set(details["final_eval"])
    assert set(metrics["compare"]) == {"gain", "gain_low", "gain_high"}
    assert 0 <= details["compare"]["mcnemar_p"] <= 1
    assert 0 <= details["compare"]["over_probe_mcnemar_p"] <= 1
    assert details["structured_eval"]["outlines_agreement"] > 0.5
    for stage in ["prepare", *GPU_STAGES, "edge_eval"]:
        assert (clone.folder / f"metrics/runtime/{stage}.json").exists()
    assert not list(clone.jobs.glob("*-*/"))  # finished work is not kept twice
    said = {line.partition(":")[0]: line for line in lines}
    assert said["prepare"] == "prepare: 160 train, 16 validation, 40 test; 0 pictures left out"
    for name in (*BASELINES, *MEASURED):
        assert re.match(rf"{name}: \d+\.\d % of 40 right \(\d+\.\d to \d+\.\d\)", said[name])
    assert re.match(r"finetune: best at step \d+ of 40: \d+\.\d % of 16 validation samples right", said["finetune"])
    assert re.match(
        r"export: models/edge, 2\.17 MB; at F16 no probability is further than 0\.00\d+ from", said["export"]
    )
    assert re.match(r"measure_edge: Q4_0\+Q8_0, 2\.17 MB: \d+\.\d % of 40 right", said["measure_edge"])
    assert "McNemar p" in said["compare"]
    assert "on frozen vision features" in said["compare"]
    assert re.match(
        r"probe: linear probe with C = \S+, nearest neighbours with k = \d+, both chosen on 16 ", said["probe"]
    )


def test_dvc_commands_show_the_results_and_fit_a_screen(clone):
    shown = clone.run("dvc", "metrics", "show")
    assert all(f"metrics/{name}.json" in shown for name in METRICS)
    assert max(map(len, shown.splitlines())) <= 160
    clone.run("dvc", "plots", "show")
    page = clone.folder / "dvc_plots"
    html = (page / "index.html").read_text()
    drawn = MEASURED
    pictures = {"describe_samples", "compare_accuracy", *(f"{name}_mistakes" for name in drawn)}
    assert {file.name for file in (page / "static").iterdir()} == {f"workspace_plots_{name}.png" for name in pictures}
    sections = re.findall(r"""<div id = ['"]([^'"]*)['"]""", html)
    titles = {
        next(iter(plot)) for plot in read_yaml(clone.folder / "plots/dvc.yaml")["plots"] if isinstance(plot, dict)
    }
    drawn_titles = {re.sub(r"\W|_", "", section) for section in sections}
    assert drawn_titles >= {re.sub(r"\W|_", "", title) for title in titles}
    columns = clone.run("dvc", "exp", "show", "--csv").splitlines()[0]
    assert "prompt.user" not in columns
    assert "prompt.system" not in columns
    assert "labels" not in columns


def test_nothing_to_do_does_nothing(clone):
    assert clone.repro() == []


def test_turning_the_fine_tuning_runs_what_depends_on_it(clone):
    output = clone.run("dvc", "exp", "run", "-S", "finetune.lora.r=4")
    ran = re.findall(r"Running stage '([\w@]+)'", output)
    assert ran[:2] == ["check", "finetune"]
    assert {"final_eval", "export", "edge_eval", "robustness"} < set(ran)
    assert not set(ran) & {"prepare", "baseline_eval", "structured_eval", "probe"}
    clone.run("git", "checkout", ".")
    clone.run("dvc", "checkout")
    assert clone.repro() == []


def test_where_a_model_can_run_changes_nothing(clone):
    clone.edit("configs/models/tiny.yaml", "runs_on_cpu: true", "runs_on_cpu: false\ngpu: H100")
    clone.edit("params.yaml", "compute: auto", "compute: local")
    clone.edit("params.yaml", "containers: 1", "containers: 4")
    assert clone.repro() == ["check"]  # which has no results
    clone.run("git", "checkout", ".")


@pytest.mark.parametrize("room", ["compute", "measuring", "commands", "edge"])
def test_code_that_measures_or_transports_runs_no_gpu_stage_again(clone, room):
    for file in (clone.folder / "vlm" / room).glob("*.py"):
        file.write_text(file.read_text() + "# another colour\n")
    changed = json.loads(clone.run("dvc", "status", "--json").splitlines()[-1])
    assert not set(changed) & {"prepare", *GPU_STAGES, "robustness"}
    assert bool(changed) == (room in ("measuring", "edge"))
    clone.run("git", "checkout", ".")


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("dropout: 0.05", "dropout: 5", r"params\.yaml: finetune\.lora\.dropout: 5 should be less than 1"),
        ("  gpu: null", "  gpu: RTX4090", r"params\.yaml: modal\.gpu: 'RTX4090' should be one of T4, .*"),
    ],
)
def test_bad_input_is_one_line_and_the_results_come_back(clone, old, new, error):
    before = clone.results()
    clone.edit("params.yaml", old, new)
    output = clone.run("dvc", "repro", code=255)
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert re.match(f"error: {error}", line)
    assert "Traceback" not in output
    clone.run("git", "checkout", ".")
    clone.run("dvc", "checkout")
    assert clone.results() == before
    assert clone.repro() == []


def test_killed_in_the_middle_of_training_goes_on_and_ends_with_the_same_adapter(clone):
    before = clone.results()
    clone.kill_in_finetune("dvc", "repro", "-f", "-s", "finetune")
    for file in ("vlm/measuring/charts.py", "vlm/compute/local.py"):  # neither decides a byte of the adapter
        (clone.folder / file).write_text((clone.folder / file).read_text() + "# another colour\n")
    output = clone.run("dvc", "repro", "-f", "-s", "finetune")
    clone.run("git", "checkout", "vlm")
    assert re.search(r"resuming from the checkpoint of step [1-9]0\b", output)
    assert clone.results() == before


def test_a_stage_ends_with_the_dvc_that_started_it(clone):
    clone.edit("params.yaml", "epochs: 1", "epochs: 100")  # so that it cannot finish before it is ended
    before = set(clone.jobs.glob("finetuning-*"))
    process = clone.start_finetune("dvc", "repro", "-s", "finetune")
    stages = [child for child in psutil.Process(process.pid).children(recursive=True) if "python" in child.name()]
    assert stages
    process.kill()  # dvc alone
    process.wait()
    _, alive = psutil.wait_procs(stages, timeout=30)
    assert not alive
    (job,) = set(clone.jobs.glob("finetuning-*/")) - before
    assert last_checkpoint(job / "checkpoints")  # from which the next run resumes
    clone.run("git", "checkout", ".")
    clone.run("dvc", "checkout")


def test_the_readmes_recipe_brings_everything_back_after_a_killed_experiment(clone):
    (recipe,) = re.findall(r"^git restore .*dvc checkout$", (ROOT / "README.md").read_text(), re.MULTILINE)
    before = clone.results()
    own = clone.folder / "configs" / "tasks" / "flowers.yaml"
    shutil.copyfile(clone.folder / "configs" / "tasks" / "own_pictures.yaml", own)
    clone.run("git", "add", str(own))
    clone.kill_in_finetune("dvc", "exp", "run", "-S", "finetune.lora.r=3")
    assert "r: 3" in (clone.folder / "params.yaml").read_text()
    clone.run("bash", "-c", recipe)
    assert clone.run("git", "status", "--porcelain") == "A  configs/tasks/flowers.yaml\n"
    assert clone.results() == before
    assert clone.repro() == []
    clone.run("git", "rm", "-fq", str(own))


def test_a_killed_experiment_in_a_temporary_folder_goes_on_in_the_next(clone):
    clone.kill_in_finetune("dvc", "exp", "run", "--temp", "-S", "finetune.lora.r=2")
    output = clone.run("dvc", "exp", "run", "--temp", "-S", "finetune.lora.r=2")
    assert re.search(r"resuming from the checkpoint of step [1-9]0\b", output)


def test_on_modal_the_results_are_the_same(clone):
    before, unfinished = clone.results(), set(clone.jobs.glob("*-*/"))  # of experiments that were killed above
    clone.edit("params.yaml", "compute: auto ", "compute: modal ")
    with tempfile.TemporaryDirectory(prefix="vlm", dir="/tmp") as state:  # short, for sockets
        log = clone.jobs.parent / "modal.json"
        standin = [sys.executable, str(STANDINS / "fake_modal.py"), "--log", str(log), "--state", state, "--"]
        clone.run(*standin, "dvc", "repro", "--force")
    assert clone.results() == before
    for name in GPU_STAGES:
        runtime = json.loads((clone.folder / f"metrics/runtime/{name}.json").read_text())
        assert runtime["gpu"] == "L4"
        assert runtime["gpu_seconds"] > 0
    seen = json.loads(log.read_text())
    assert [call["function"] for call in seen["calls"]] == ["conduct", "work"] * len(GPU_STAGES)
    paths = [upload["path"] for upload in seen["uploads"]]
    assert len(paths) == len(set(paths))
    clone.run("git", "checkout", ".")
    clone.run("dvc", "checkout")
    assert set(clone.jobs.glob("*-*/")) == unfinished  # nothing is left of the jobs that ended


def test_a_second_run_from_nothing_gives_the_same_bytes(clone):
    before = clone.results()
    clone.run("dvc", "repro", "--force")
    assert clone.results() == before
