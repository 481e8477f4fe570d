"""Complete jobs against the stand-in for Modal (tests/standins)."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.vlm.compute.places import ROOT, STANDINS
from vlm.compute.request import Request
from vlm.config import gpus
from vlm.config.params import RobustnessParams, load_params
from vlm.probing import FeatureExtraction
from vlm.robustness import Robustness

# Makes a container say, when it ends, where it has looked for weights and how many cores it may use.
CACHE = """
import atexit, os, sys
atexit.register(lambda: print("cores:", os.environ.get("VLM_CORES"), file=sys.stderr))
atexit.register(lambda: print("cache:", sys.modules["huggingface_hub"].constants.HF_HUB_CACHE, file=sys.stderr))
"""


@pytest.mark.slow
def test_an_evaluation_has_the_same_results_on_modal_and_uploads_its_inputs_once(here, locally):
    secret = {"HF_TOKEN": "hf_a-secret-of-the-tests"}
    stderr = here.run("structured", "modal", "evaluated", environment=secret)
    assert here.output == "imported:\n"
    assert here.results("evaluated") == locally["structured"]
    full = [unit for done, total, unit in re.findall(r"(\d+)/(\d+) ([A-Za-z ]+?)(?: in |\n)", stderr) if done == total]
    assert full == ["image", "validation image", "image for the prior", "image by Outlines"]
    paths = sorted(Path(upload["path"]).parts[3:] for upload in here.log["uploads"])
    model = {("content", file.name) for file in (ROOT / "models/tiny").iterdir()}
    assert set(paths) == model | {("content",), ("complete",)}
    assert len(paths) == len(model) + 3 + 4  # three splits, and a marker for each and for the model
    for function in here.log["functions"].values():
        assert all(file.startswith("/root/vlm/") and file.endswith(".py") for file in function["local_files"])
        assert not function["secrets"]
    (worker,) = [f for f in here.log["functions"].values() if f["name"] == "work" and f["base_function_id"]]
    assert (worker["gpu"], worker["cpu_cores"], worker["memory_mib"]) == ("L4", 2, 10240)
    assert (worker["timeout_s"], worker["single_use_containers"]) == (86400, True)
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
def test_containers_share_an_evaluation_and_only_a_failed_one_is_restarted(here, locally):
    stderr = here.run(
        "structured", "modal", "shared", "--preempt", "work@put:3", "--preempt-mode", "kill", containers=2
    )
    assert here.results("shared") == locally["structured"]
    assert sorted(here.attempts("work")) == [["PREEMPTED", "SUCCESS"], ["SUCCESS"]]
    full = [unit for done, total, unit in re.findall(r"(\d+)/(\d+) ([A-Za-z ]+?)(?: in |\n)", stderr) if done == total]
    assert full == ["image", "validation image", "image for the prior", "image by Outlines"]


@pytest.mark.slow
def test_several_gpus_run_several_processes_and_are_billed(here, locally, tiny):
    here.run("finetune", "modal", "several", gpu="L4:2")
    (worker,) = [f for f in here.log["functions"].values() if f["name"] == "work" and f["base_function_id"]]
    assert worker["gpu"] == "L4:2"
    runtime, metrics = (
        json.loads((here.folder / "several" / f"{name}.json").read_text()) for name in ("runtime", "metrics")
    )
    assert metrics["steps"] == 6
    price = gpus.container_for(tiny.model_copy(update={"gpu": "L4:2"}), load_params().modal, True).dollars_per_second
    assert (runtime["gpu"], runtime["dollars_per_second"]) == ("L4:2", pytest.approx(price))
    assert runtime["gpu_seconds"] / 2 * price == pytest.approx(runtime["dollars"], abs=1e-3)
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

    def run(out, *options, **arguments):
        hub = [sys.executable, STANDINS / "fake_hub.py", tree, "--log", tmp_path / f"{out}.jsonl", *gate, "--"]
        stderr = here.run("raw", "modal", out, *options, outside=hub, **arguments)
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
        startup = tmp_path / "startup.py"
        startup.write_text(CACHE)
        _, requests = run("second", "--startup", startup, environment={"HF_TOKEN": token})
        assert "model.safetensors" not in requests
        outputs = {
            record["function"]: Path(here.state, "containers", record["container"], "stderr.log").read_text()
            for record in here.log["containers"]
        }
        assert "cache: /volume/huggingface/hub" in outputs["conduct"]
        assert "cache: /work/huggingface/hub" in outputs["work"]  # not on the volume, where it would have open files
        assert "cores: 4\n" in outputs["work"]  # two physical ones
        assert here.results("second") == here.results("first")
    finally:
        (here.folder / "params.yaml").write_text(text)


@pytest.mark.slow
def test_features_are_the_same_on_modal_and_in_several_containers(here):
    here.run("features", "local", "local-features")
    for containers in (1, 2):
        here.run("features", "modal", f"features-{containers}", containers=containers)
        assert here.output == "imported:\n"
        assert here.results(f"features-{containers}") == here.results("local-features")


@pytest.mark.slow
def test_robustness_is_the_same_on_modal_and_in_several_containers(here, locally):
    """With the adapter of `locally`."""
    here.run("robustness", "local", "local-robustness")
    for containers in (1, 2):
        here.run("robustness", "modal", f"robustness-{containers}", containers=containers)
        assert here.output == "imported:\n"
        assert here.results(f"robustness-{containers}") == here.results("local-robustness")


def test_requests_reproduce_the_jobs_of_probe_and_robustness(task, tiny, image_params):
    params = RobustnessParams(enabled=True, samples=4, severities=[2, 5], corruptions=["spatter", "contrast"])
    for job in (
        FeatureExtraction(task, tiny, image_params, validation="data/v.parquet"),
        Robustness(task, tiny, image_params, 6, "data/test.parquet", "models/adapter", params),
    ):
        request = Request.of(
            job,
            key="a-job",
            inputs={path: "inputs/abc" for path in job.inputs},
            from_hub=False,
            gpu="L4",
            larger_gpu=None,
            gpu_count=1,
            cpu_cores=2,
            memory_gib=10,
            dollars_per_second=0.5,
            containers=2,
            max_dollars=None,
            seconds=3600.0,
            region=None,
        )
        assert Request.model_validate_json(request.model_dump_json()).rebuilt() == job
