"""GitHub's workflows: they are valid, what they name exists, and the report for a pull request is what it should be."""

import os
import re
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path

import pytest

from vlm.config.yaml_files import read_yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
SCRIPTS = Path(sysconfig.get_path("scripts"))


def steps(workflow: Path) -> list[dict]:
    return [step for job in read_yaml(workflow)["jobs"].values() for step in job["steps"]]


def texts(workflow: Path) -> list[str]:
    """What the steps run, and the variables that they are given."""
    return [str(text) for step in steps(workflow) for text in [step.get("run", ""), *step.get("env", {}).values()]]


@cache
def tracked() -> set[str]:
    return set(subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines())


def test_workflows_are_valid():
    assert WORKFLOWS
    command = [SCRIPTS / "check-jsonschema", "--builtin-schema", "vendor.github-workflows", *WORKFLOWS]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_make_targets_exist(workflow):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {name for text in texts(workflow) for name in re.findall(r"\bmake ([\w-]+)", text)} <= targets


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_files_exist(workflow):
    """Every word that looks like a file is one in git, unless the workflow writes it."""
    text = "\n".join(texts(workflow))
    named = set(re.findall(r"(?<![\w/.$-])\w[\w/.-]*\.(?:csv|json|lock|md|png|py|sh|toml|ya?ml)\b", text))
    assert named - set(re.findall(r"> ([\w/.-]+)", text)) <= tracked()


def test_python_is_the_oldest_allowed():
    [version] = {
        step["with"]["python-version"]
        for step in steps(ROOT / ".github/workflows/tests.yml")
        if "python-version" in step.get("with", {})
    }
    assert f'requires-python = ">={version}"' in (ROOT / "pyproject.toml").read_text()


def test_report(tmp_path):
    """The step that writes the report, in a clone without a DVC cache whose last commit changes one metric."""

    def git(*command: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *command], cwd=clone, check=True)

    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    git("branch", "base")
    changed = clone / "metrics/final_eval.json"
    changed.write_text(re.sub(r'"accuracy": [\d.]+', '"accuracy": 0.123', changed.read_text()))
    git("commit", "--quiet", "--all", "--message", "Change a metric")

    [step] = [step for step in steps(ROOT / ".github/workflows/report.yml") if "report.md" in step.get("name", "")]
    # uvx would fetch DVC; here it is this environment's.
    uvx = tmp_path / "bin/uvx"
    uvx.parent.mkdir()
    uvx.write_text(f'#!/bin/sh\n[ "${{1%%==*}}" = dvc ] && shift && exec "{sys.executable}" -m dvc "$@"\n')
    uvx.chmod(0o755)
    given = {"BASE": "base", "FILES": "https://host/files", "PICTURE": step["env"]["PICTURE"]}
    assert given.keys() == step["env"].keys()
    subprocess.run(
        ["bash", "-e", "-c", step["run"]],
        cwd=clone,
        env=os.environ
        | given
        | {"PATH": f"{uvx.parent}:{os.environ['PATH']}", "GITHUB_STEP_SUMMARY": tmp_path / "summary"},
        check=True,
    )
    report = (clone / "report.md").read_text()
    rows = [line for line in report.splitlines() if line.startswith("| metrics/")]
    assert len(rows) == 1 and [cell.strip() for cell in rows[0].split("|")][2] == "accuracy" and "0.123" in rows[0]
    assert "(https://host/files/plots/compare/accuracy.png?raw=true)" in report
    assert (tmp_path / "summary").read_text() == report
