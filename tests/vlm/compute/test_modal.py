"""Modal: the options of its functions, and complete jobs against a stand-in for the service (tests/standins)."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import pytest

from vlm import compute
from vlm.compute.request import Request
from vlm.config.models import ModelConfig
from vlm.config.task import load_task
from vlm.data import dataset
from vlm.sources import badges

ROOT = Path(__file__).parents[3]
STANDINS = ROOT / "tests" / "standins"

BIG = ModelConfig(name="3B", id="LiquidAI/LFM2-VL-3B", gpu="H100")


def test_auto_chooses_modal_for_a_model_that_needs_a_gpu_on_a_machine_without_one(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))  # no driver
    assert compute.place(BIG, "auto") == "modal"
    assert compute.place(BIG, "local") == "local"
    small = BIG.model_copy(update={"runs_on_cpu": True})
    assert compute.place(small, "auto") == "local"
    assert compute.place(small, "modal") == "modal"
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho 'GPU 0: a GPU'\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert compute.place(BIG, "auto") == "local"


def request(**values) -> Request:
    standard = dict(
        key="k", kind="k", job="", inputs={}, from_hub=False, gpu="H100:4", dollars_per_second=0.004, containers=1,
        max_dollars=None, seconds=7200.0, region=None,
    )  # fmt: skip
    return Request(**(standard | values))


def test_options():
    from vlm.compute import modal_app as modal

    assert modal.options(request()) == {"gpu": "H100:4", "timeout": 7500}
    assert modal.options(request(region="eu", seconds=86400.0)) == {"gpu": "H100:4", "timeout": 86400, "region": "eu"}
    assert modal.options(request(max_dollars=2.0))["timeout"] == 800


def test_the_image_has_the_oldest_python_that_the_project_allows():
    from vlm.compute import modal_app as modal

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={modal.PYTHON}"
    assert any(requirement.startswith("modal") for requirement in project["dependencies"])


def test_modal_objects_do_not_depend_on_environment_variables():
    trees = [ast.parse(file.read_text()) for file in (ROOT / "vlm" / "compute").glob("modal*.py")]
    at_import = [node for tree in trees for node in tree.body if not isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert not [n for node in at_import for n in ast.walk(node) if isinstance(n, ast.Attribute) and n.attr == "environ"]


def test_a_process_that_drives_modal_imports_neither_torch_nor_transformers(at_root):
    stages = "baseline_eval, structured_eval, finetune, final_eval"
    code = f"import sys\nfrom stages import {stages}\nfrom vlm.commands import plan\n"
    code += "from vlm.compute import modal, tracking\nimport dvclive, huggingface_hub\n"
    code += "print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


JOB = """
import json, shutil, sys
from pathlib import Path
from vlm import compute
from vlm.config import pins
from vlm.config.errors import reported
from vlm.evaluation.job import Evaluation
from vlm.training.job import FineTuning
from vlm.config.params import ModalParams, load_params


def main():
    kind, where, out, values = sys.argv[1:]
    params = pins.resolved(load_params())
    modal = ModalParams(**(params.modal.model_dump() | json.loads(values)))
    if kind == "finetune":
        job = FineTuning(params.task, params.model, params.image, params.finetune, 5, "data/train.parquet", "data/validation.parquet")
    else:
        job = Evaluation.of(params, raw=kind == "raw", structured=kind == "structured")
    with compute.run(job, where, modal, live=f"{out}-live" if kind == "finetune" else None) as result:
        for name in job.RESULTS:
            copy = shutil.copytree if (result / name).is_dir() else shutil.copyfile
            Path(out).mkdir(exist_ok=True)
            if (result / name).exists():
                copy(result / name, Path(out, name))
    print("imported:", *sorted({"torch", "transformers"} & set(sys.modules)))


if __name__ == "__main__":
    with reported():
        main()
"""
MICRO = {
    "epochs: 2": "epochs: 1",
    "batch_size: 16 ": "batch_size: 4 ",
    "eval_steps: 50": "eval_steps: 2",
    "eval_samples: 160": "eval_samples: 8",
    "batch_size: 32": "batch_size: 4",
    "max_new_tokens: 32": "max_new_tokens: 4",
    "outlines_samples: 64": "outlines_samples: 6",
    "calibrate: false": "calibrate: true",
}
# Starts `job.py`, sends it a signal when `sign` appears, then starts it again.
TWICE = """
import os, signal, subprocess, sys, time
number, sign, *arguments = sys.argv[1:]  # sign: a file (*.tsv), or text on stderr
command = [sys.executable, "job.py", *arguments]
first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
while sign.endswith(".tsv") and not os.path.exists(sign) and first.poll() is None:
    time.sleep(0.02)
for line in first.stderr if not sign.endswith(".tsv") else ():
    print(line, end="", file=sys.stderr)
    if sign in line:
        break
os.killpg(first.pid, int(number))
print(first.stderr.read(), "first:", first.wait(), file=sys.stderr)
sys.exit(subprocess.run(command).returncode)
"""


class Place:
    """A folder to run jobs in, with its own user cache and its own volumes of the stand-in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = tempfile.mkdtemp(
            prefix="vlm", dir="/tmp"
        )  # short, because a socket's path has at most 100 characters
        self.log: dict = {}
        for name in ("configs", "models/tiny", "requirements.lock"):
            source = ROOT / name
            (shutil.copytree if source.is_dir() else shutil.copyfile)(source, self._made(name))
        text = (ROOT / "params.yaml").read_text()
        for old, new in MICRO.items():
            assert old in text
            text = text.replace(old, new, 1)
        (folder / "params.yaml").write_text(text)
        (folder / "job.py").write_text(JOB)
        (folder / "twice.py").write_text(TWICE)
        icons = load_task("car_badges").source.badges.icons
        for number, (name, rows) in enumerate({"train": 24, "validation": 6, "test": 22}.items()):
            rendered = enumerate(badges.render_split(list(icons.values()), rows, 1, number, 0.3, workers=1))
            rows = [dataset.Row(f"{name}-{i}", jpeg, list(icons)[k]) for i, (k, jpeg) in rendered]
            dataset.write(self._made(f"data/{name}.parquet"), rows)

    def _made(self, name: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def run(self, kind, where, out, *options, code=0, before=(), outside=(), environment=(), **modal):
        """Runs a job and returns its stderr; on Modal, against the stand-in with `options`, whose log goes to `log`."""
        arguments = [kind, where, out, json.dumps(modal)]
        command = [sys.executable, *(before or ["job.py"]), *arguments]
        if where == "modal":
            log = self.folder / "log.json"
            command = [
                *outside,
                sys.executable,
                STANDINS / "fake_modal.py",
                "--log",
                log,
                "--state",
                self.state,
                *options,
                "--",
                *command,
            ]
        environment = os.environ | dict(environment) | {
            "PYTHONPATH": str(ROOT),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "HF_HOME": str(self.folder / "hf"),
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False, timeout=600
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        self.output = done.stdout
        if where == "modal":
            self.log = json.loads(log.read_text())
        return done.stderr

    def results(self, out: str) -> dict[str, bytes]:
        """The contents of all result files except runtime.json."""
        folders = [self.folder / out, self.folder / f"{out}-live"]
        files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
        names = {file: str(file.relative_to(self.folder)).removeprefix(out) for file in files}
        return {name: file.read_bytes() for file, name in names.items() if name != "/runtime.json"}

    def attempts(self, function: str) -> list[list[str]]:
        """The status of every attempt, for each call of a function."""
        return [
            [attempt["status"] for entry in call["inputs"] for attempt in entry["attempts"]]
            for call in self.log["calls"]
            if call["function"] == function
        ]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    before = Path.cwd()
    os.chdir(ROOT)
    place = Place(tmp_path_factory.mktemp("place"))
    os.chdir(before)
    yield place
    shutil.rmtree(place.state)


@pytest.fixture(scope="module")
def locally(here):
    """The results of jobs that ran on this machine, by kind."""
    for kind in ("structured", "finetune"):
        here.run(kind, "local", f"local-{kind}")
    return {kind: here.results(f"local-{kind}") for kind in ("structured", "finetune")}


@pytest.mark.parametrize(
    ("options", "modal", "message"),
    [
        (["--no-credentials"], {}, "error: modal: no valid token on this machine: `modal setup` creates one"),
        (["--fail-image-build", "uv"], {}, "error: modal: the image could not be built"),
        ([], {"gpu": "H10"}, "error: params.yaml: modal.gpu: 'H10' should be one of"),
    ],
    ids=["token", "image", "gpu"],
)
def test_errors_from_modal_are_reported_in_one_line(here, options, modal, message):
    lines = here.run("raw", "modal", "refused", *options, code=1, **modal).splitlines()
    (error,) = [line for line in lines if line.startswith("error: ")]
    assert error.startswith(message)
    assert not here.log["calls"]
    assert not (here.folder / "refused").exists()


@pytest.mark.slow
def test_a_missing_network_is_reported_in_one_line(here):
    nowhere = {"MODAL_SERVER_URL": "http://127.0.0.1:9", "MODAL_TOKEN_ID": "ak-x", "MODAL_TOKEN_SECRET": "as-x"}
    wrapper = ["-c", f"import os, runpy, sys; os.environ |= {nowhere}; runpy.run_path('job.py', run_name='__main__')"]
    assert "error: modal: cannot be reached" in here.run("raw", "modal", "lost", code=1, before=wrapper)


@pytest.mark.slow
def test_an_evaluation_has_the_same_results_on_modal_and_uploads_its_inputs_once(here, locally):
    secret = {"HF_TOKEN": "hf_a-secret-of-the-tests"}
    stderr = here.run("structured", "modal", "evaluated", environment=secret)
    assert here.output == "imported:\n"
    assert here.results("evaluated") == locally["structured"]
    full = [unit for done, total, unit in re.findall(r"(\d+)/(\d+) ([A-Za-z ]+?)(?: in |\n)", stderr) if done == total]
    assert full == ["image", "validation image", "image by Outlines"]
    paths = sorted(Path(upload["path"]).parts[3:] for upload in here.log["uploads"])
    model = {("content", file.name) for file in (ROOT / "models/tiny").iterdir()}
    assert set(paths) == model | {("content",), ("complete",)}
    assert len(paths) == len(model) + 2 + 3
    for function in here.log["functions"].values():
        assert all(file.startswith("/root/vlm/") and file.endswith(".py") for file in function["local_files"])
        assert not function["secrets"]
    (worker,) = [f for f in here.log["functions"].values() if f["name"] == "work" and f["base_function_id"]]
    assert (worker["gpu"], worker["timeout_s"], worker["single_use_containers"]) == ("L4", 86400, True)
    assert (worker["retries"]["retries"], worker["retries"].get("initial_delay_ms", 0)) == (10, 0)
    assert "requirements.lock" in str(worker["image_commands"])
    runtime = json.loads((here.folder / "evaluated" / "runtime.json").read_text())
    assert runtime["gpu"] == "L4"
    assert runtime["dollars"] == pytest.approx(runtime["gpu_seconds"] * runtime["dollars_per_second"], abs=1e-3)

    stderr += here.run("raw", "modal", "raw", environment=secret)
    assert not here.log["uploads"]
    assert not here.log["warnings"]
    left = [file for file in Path(here.state, "volumes").rglob("*") if file.is_file() and "jobs" in file.parts]
    assert not left, "results are removed from the volume after the download"
    texts = [stderr, json.dumps(here.log), *(f.read_text(errors="replace") for f in Path(here.state).rglob("*.log"))]
    files = [f.read_bytes() for folder in (here.folder, Path(here.state)) for f in folder.rglob("*") if f.is_file()]
    assert not any(secret["HF_TOKEN"] in text for text in texts)
    assert not any(secret["HF_TOKEN"].encode() in content for content in files)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "points"),
    [
        ("kill", ["commit:1", "commit:2", "commit:3"]),
        ("int", ["commit:3"]),
    ],  # int leaves time to save, and each save counts as a commit
)
def test_a_preempted_training_ends_with_the_same_adapter(here, locally, mode, points):
    options = [word for point in points for word in ("--preempt", f"work@{point}")]
    here.run("finetune", "modal", f"preempted-{mode}", *options, "--preempt", "conduct@15s", "--preempt-mode", mode)
    assert here.output == "imported:\n"
    assert here.results(f"preempted-{mode}") == locally["finetune"]
    assert here.attempts("work") == [["PREEMPTED"] * len(points) + ["SUCCESS"]]
    assert here.attempts("conduct") == [["PREEMPTED", "SUCCESS"]]


@pytest.mark.slow
def test_a_second_client_reconnects_to_the_job_of_a_killed_one(here, locally):
    stderr = here.run("finetune", "modal", "attached", before=["twice.py", "9", "/6 step"])
    assert "first: -9" in stderr
    assert "reconnecting to the job that is running on Modal (L4)" in stderr
    assert here.results("attached") == locally["finetune"]
    assert here.attempts("work") == [["SUCCESS"]]
    assert here.attempts("conduct") == [["SUCCESS"]]


@pytest.mark.slow
def test_ctrl_c_cancels_the_job_reports_its_cost_and_the_next_run_resumes(here, locally):
    first_point = "interrupted-live/plots/metrics/train/loss.tsv"
    stderr = here.run("finetune", "modal", "interrupted", before=["twice.py", "2", first_point])
    assert "first: 130" in stderr
    assert "cancelled on Modal after " in stderr
    assert " s of L4, about $0.0" in stderr
    cancelled = {event["function"] for event in here.log["events"] if event["event"] == "cancel"}
    assert cancelled == {"conduct", "work"}
    assert here.results("interrupted") == locally["finetune"]
    assert len(here.attempts("work")) == 2


@pytest.mark.slow
def test_containers_share_an_evaluation_and_only_a_failed_one_is_restarted(here, locally):
    stderr = here.run(
        "structured", "modal", "shared", "--preempt", "work@commit:3", "--preempt-mode", "kill", containers=2
    )
    assert here.results("shared") == locally["structured"]
    assert sorted(here.attempts("work")) == [["PREEMPTED", "SUCCESS"], ["SUCCESS"]]
    full = [unit for done, total, unit in re.findall(r"(\d+)/(\d+) ([A-Za-z ]+?)(?: in |\n)", stderr) if done == total]
    assert full == ["image", "validation image", "image by Outlines"]


@pytest.mark.slow
def test_several_gpus_run_several_processes_and_are_billed(here, locally):
    here.run("finetune", "modal", "several", gpu="L4:2")
    (worker,) = [f for f in here.log["functions"].values() if f["name"] == "work" and f["base_function_id"]]
    assert worker["gpu"] == "L4:2"
    runtime, metrics = (
        json.loads((here.folder / "several" / f"{name}.json").read_text()) for name in ("runtime", "metrics")
    )
    assert metrics["steps"] == 6
    assert (runtime["gpu"], runtime["dollars_per_second"]) == ("L4:2", pytest.approx(2 * 0.000222))
    assert runtime["gpu_seconds"] * 0.000222 == pytest.approx(runtime["dollars"], abs=1e-3)
    assert set(here.results("several")) == set(locally["finetune"])


@pytest.mark.slow
def test_a_limit_stops_the_job_on_modal(here, locally):
    stderr = here.run("structured", "modal", "limited", code=1, max_dollars=1e-9)
    assert "error: params.yaml: modal.max_dollars: the job has cost $" in stderr
    assert "so far " in stderr
    assert not (here.folder / "limited").exists()
    assert here.attempts("work") == [["SUCCESS"]]  # an error that is returned, so that Modal does not retry it
    here.run("structured", "modal", "limited", max_dollars=5)
    assert here.results("limited") == locally["structured"]


@pytest.mark.slow
def test_weights_are_downloaded_from_the_hub_once_with_the_callers_token(here, tmp_path):
    tree = tmp_path / "hub"
    maker = [sys.executable, STANDINS / "make_hub_tree.py", tree, "--only", "LFM2-VL-450M"]
    subprocess.run(maker, check=True, capture_output=True)
    text = (here.folder / "params.yaml").read_text()
    (here.folder / "params.yaml").write_text(text.replace("model: tiny\n", "model: 450M\n"))
    token = "hf_another-secret-of-the-tests"
    gate = ["--gated", "LiquidAI/LFM2-VL-450M", "--require-token", token]

    def run(out, **arguments):
        hub = [sys.executable, STANDINS / "fake_hub.py", tree, "--log", tmp_path / f"{out}.jsonl", *gate, "--"]
        stderr = here.run("raw", "modal", out, outside=hub, **arguments)
        return stderr, (tmp_path / f"{out}.jsonl").read_text()

    try:
        stderr, _ = run("gated", code=1)
        assert "'LiquidAI/LFM2-VL-450M' is gated" in stderr
        stderr, requests = run("first", environment={"HF_TOKEN": token})
        assert "model.safetensors" in requests
        (conduct,) = [f for f in here.log["functions"].values() if f["name"] == "conduct" and f["secrets"]]
        assert not [f for f in here.log["functions"].values() if f["name"] == "work" and f["secrets"]]
        assert {key for secret in conduct["secrets"] for key in secret["keys"]} == {"HF_TOKEN", "HF_ENDPOINT"}
        assert token not in stderr + json.dumps(here.log)
        _, requests = run("second", environment={"HF_TOKEN": token})
        assert "model.safetensors" not in requests
        assert here.results("second") == here.results("first")
    finally:
        (here.folder / "params.yaml").write_text(text)
