"""dvc.yaml against the code: a stage depends on exactly the modules that it imports, and tracks only what it uses."""

import ast
from pathlib import Path

import pytest

from vlm.config.yaml_files import read_yaml

ROOT = Path(__file__).parents[1]
STAGES = read_yaml(ROOT / "dvc.yaml")["stages"]


def imported(file: Path) -> set[Path]:
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
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    files = set()
    for name in names:
        path = ROOT.joinpath(*name.split("."))
        files |= {found for found in (path.with_suffix(".py"), path / "__init__.py") if found.exists()}
    return files


def closure(file: Path) -> set[str]:
    seen, todo = set(), [file]
    while todo:
        current = todo.pop()
        if current not in seen:
            seen.add(current)
            todo += imported(current)
    return {str(path.relative_to(ROOT)) for path in seen}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_exactly_the_modules_that_it_imports(stage):
    listed = {dep for dep in STAGES[stage]["deps"] if dep.endswith(".py")}
    assert listed == closure(ROOT / "stages" / f"{stage}.py")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_task_file(stage):
    assert "configs/tasks/${task}.yaml" in STAGES[stage]["deps"]


def test_where_a_job_runs_changes_no_stage():
    tracked = {key for stage in STAGES.values() for key in stage["params"] if isinstance(key, str)}
    assert not {"compute", "modal"} & {key.split(".")[0] for key in tracked}
    from_model_files = {
        key
        for stage in STAGES.values()
        for params in stage["params"]
        if isinstance(params, dict)
        for key in params["configs/models/${model}.yaml"]
    }
    assert from_model_files == {"id", "revision", "options"}


def test_every_tracked_key_exists_in_params_yaml():
    params = read_yaml(ROOT / "params.yaml")
    for stage in STAGES.values():
        for key in stage["params"]:
            value = params
            for part in key.split(".") if isinstance(key, str) else ():
                value = value[part]
