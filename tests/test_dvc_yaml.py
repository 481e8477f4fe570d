"""dvc.yaml against the code: a stage depends on exactly the packages that it imports, and tracks only what it uses."""

import ast
from functools import cache
from pathlib import Path

import pytest

from vlm.config.yaml_files import read_yaml
from vlm.edge.answers import EdgeEvaluation
from vlm.evaluation import Evaluation
from vlm.probing import FeatureExtraction
from vlm.prompting import PromptSearch
from vlm.robustness import Robustness
from vlm.training import FineTuning

ROOT = Path(__file__).parents[1]
STAGES = read_yaml(ROOT / "dvc.yaml")["stages"]
# The rooms of vlm, from the top down: imports point down this list only.
ROOMS = """
    commands report audit measuring edge robustness probing prompting compute training evaluation models sources data config
""".split()


@cache
def imported(file: Path) -> frozenset[Path]:
    """The files of this repository that `file` imports, anywhere but under TYPE_CHECKING."""
    tree = ast.parse(file.read_text())
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    names = set()
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    # Importing a.b.c also runs the __init__.py of a and of a.b.
    names |= {".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 1)}
    files = set()
    for name in names:
        path = ROOT.joinpath(*name.split("."))
        files |= {found for found in (path.with_suffix(".py"), path / "__init__.py") if found.exists()}
    return frozenset(files)


def room(file: Path) -> str | None:
    """The package of vlm that a file is in."""
    parts = file.relative_to(ROOT).parts
    return parts[1] if parts[0] == "vlm" and len(parts) > 2 else None


def rooms_behind(start: list[Path]) -> set[str]:
    """The packages of vlm that the files import, directly or not. What compute imports for itself does not count."""
    seen, todo = set(), list(start)
    while todo:
        current = todo.pop()
        if current not in seen and room(current) != "compute":
            seen.add(current)
            todo += imported(current)
    return {room(path) for path in seen} - {None}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_exactly_the_packages_that_it_imports(stage):
    code = {dep for dep in STAGES[stage]["deps"] if dep.startswith(("vlm/", "stages/"))}
    expected = {f"vlm/{name}" for name in rooms_behind([ROOT / "stages" / f"{stage}.py"])} | {f"stages/{stage}.py"}
    if stage == "report":
        expected.add("stages/audit.py")  # in the place of plots/audit
    assert code == expected


def test_the_report_depends_on_all_that_the_audit_depends_on():
    """It reads plots/audit, which is not among its dependencies."""
    assert set(STAGES["audit"]["deps"]) <= set(STAGES["report"]["deps"])
    assert "metrics/audit.json" in STAGES["report"]["deps"]  # so that the audit runs first


@pytest.mark.parametrize("job", [Evaluation, FineTuning, FeatureExtraction, PromptSearch, Robustness, EdgeEvaluation])
def test_a_jobs_key_depends_on_exactly_the_packages_that_it_imports(job):
    own = [ROOT.joinpath(*job.__module__.split(".")).with_suffix(".py")]
    assert set(job.PACKAGES) == rooms_behind(own)


def test_imports_point_down_the_list_of_rooms():
    files = [file for file in (ROOT / "vlm").rglob("*.py") if room(file)]
    assert {room(file) for file in files} == set(ROOMS)
    upward = [
        f"{file.relative_to(ROOT)} imports {target.relative_to(ROOT)}"
        for file in files
        for target in imported(file)
        if room(target) and ROOMS.index(room(target)) < ROOMS.index(room(file))
    ]
    assert not upward


WITHOUT_TASK_FILE = ("check", "measure_robustness", "measure_prompt_search")


@pytest.mark.parametrize("stage", [name for name in STAGES if name not in WITHOUT_TASK_FILE])
def test_a_stage_depends_on_the_task_file(stage):
    assert "configs/tasks/${task}.yaml" in STAGES[stage]["deps"]


def test_where_a_job_runs_changes_no_stage_with_results():
    with_results = [stage for stage in STAGES.values() if "outs" in stage]
    tracked = {key for stage in with_results for key in stage.get("params", []) if isinstance(key, str)}
    assert not {"compute", "modal"} & {key.split(".")[0] for key in tracked}
    from_model_files = {
        key
        for stage in with_results
        for params in stage.get("params", [])
        if isinstance(params, dict)
        for key in params["configs/models/${model}.yaml"]
    }
    assert from_model_files == {"id", "revision", "options"}


def test_every_tracked_key_exists_in_params_yaml():
    params = read_yaml(ROOT / "params.yaml")
    for stage in STAGES.values():
        for key in stage.get("params", []):
            value = params
            for part in key.split(".") if isinstance(key, str) else ():
                value = value[part]
