"""Modal: the options of its functions, and errors, against a stand-in for the service (tests/standins)."""

import ast
import subprocess
import sys
import tomllib

import pytest

from tests.vlm.compute.places import ROOT
from vlm import compute
from vlm.compute.request import Request
from vlm.config.models import ModelConfig

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
        key="k", kind="k", job="", inputs={}, from_hub=False, gpu="H100:4", larger_gpu="H200:4", gpu_count=4, cpu_cores=32,
        memory_gib=64, dollars_per_second=0.004, containers=1, max_dollars=None, seconds=7200.0, region=None,
    )  # fmt: skip
    return Request(**(standard | values))


def test_options():
    from vlm.compute import modal_app as modal

    standard = {"gpu": "H100:4", "cpu": 32, "memory": 65536, "timeout": 7500}
    assert modal.options(request()) == standard
    assert modal.options(request(region="eu", seconds=86400.0)) == standard | {"timeout": 86400, "region": "eu"}
    assert modal.options(request(max_dollars=2.0))["timeout"] == 800
    assert modal.options(request(max_dollars=2.0, containers=5))["timeout"] == 400  # each has a fifth of the money


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
def test_hf_xet_keeps_no_file_open_on_the_volume(here, locally):
    """hf_xet opens a log file in HF_HOME when it is imported, and keeps it open."""
    startup = here.folder / "startup.py"
    startup.write_text("import hf_xet\n")
    here.run("structured", "modal", "xet", "--startup", startup)
    assert here.results("xet") == locally["structured"]
    assert here.log["commits"]
    assert not here.log["warnings"]


def test_files_that_are_open_on_the_volume_end_a_job_at_once(here):
    """The same, with HF_HOME on the volume."""
    startup = here.folder / "startup.py"
    startup.write_text("import os\nos.environ['HF_HOME'] = '/volume/huggingface'\nimport hf_xet\n")
    stderr = here.run("structured", "modal", "xet-on-the-volume", "--startup", startup, code=1)
    assert "error: modal: the volume can be neither committed nor reloaded: " in stderr
    assert "open files preventing the operation" in stderr
    assert here.attempts("conduct") == [["SUCCESS"]]  # an error that is returned, so that Modal does not retry it
    assert "huggingface/xet/logs/" in str(here.log["warnings"])
