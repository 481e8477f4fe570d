"""Nothing in the test split is used to choose anything: not by the pipeline, not by a job, not by a command."""

import dataclasses
import re
from functools import cache
from pathlib import Path

import pytest

from vlm.config.params import load_params
from vlm.config.yaml_files import read_yaml
from vlm.data import dataset, json_files
from vlm.evaluation import TEST, TRAIN, VALIDATION, Evaluation
from vlm.probing import FeatureExtraction, baselines
from vlm.prompting import search
from vlm.training import FineTuning

ROOT = Path(__file__).parents[1]
STAGES = read_yaml(ROOT / "dvc.yaml")["stages"]

# The stages that see test, its predictions or what is measured on them, and what for
SEE_TEST = {
    "baseline_eval": "answers it",
    "structured_eval": "answers it",
    "final_eval": "answers it",
    "edge_eval": "answers it",
    "robustness": "answers corrupted copies of it",
    "probe": "answers it; the probes are fitted to train, and chosen on validation",
    "export": "takes the label prior from predictions/final_eval/test.json, which is estimated on train or blank pictures",
    "prompt_search": "asks the winner, which was chosen on validation, and the present prompt about it, once",
    "describe": "shows samples and counts labels",
    "measure": "measures the answers; thresholds come from validation",
    "measure_edge": "measures the answers",
    "measure_robustness": "measures the answers",
    "measure_prompt_search": "measures the answers",
    "compare": "measures the answers",
    "audit": "lists suspicious pictures for a person; what is changed in test is counted (test_changed)",
    "report": "shows the answers",
}
# The packages of vlm that name the test split's file, and what for
NAME_TEST = {
    "sources": "writes it",
    "evaluation": "answers it",
    "data": "names the files of the answers to it",
    "robustness": "names the file of the answers to corrupted copies of it",
    "measuring": "reads the answers to it",
    "probing": "computes its features, for the probes' answers and for the audit",
    "audit": "looks for suspicious pictures in all splits",
    "report": "shows it",
    "commands": "learning-curve counts right answers, batch-size measures the speed on its largest picture",
}


def of_test(path: str) -> bool:
    """Whether a file of the pipeline is the test split, or was made from it."""
    return path == TEST or path.startswith(("predictions/", "plots/", "metrics/"))


@cache
def dependencies(stage: str) -> frozenset[str]:
    return frozenset(expanded(stage, STAGES[stage]["deps"]))


def outputs(stage: str) -> set[str]:
    listed = [*STAGES[stage].get("outs", []), *STAGES[stage].get("metrics", [])]
    return expanded(stage, [path if isinstance(path, str) else next(iter(path)) for path in listed])


def expanded(stage: str, paths: list[str]) -> set[str]:
    items = STAGES[stage].get("matrix", {}).get("name", [""])
    return {path.replace("${item.name}", item) for path in paths for item in items}


def overlap(one: str, other: str) -> bool:
    """Whether two paths are the same, or one is a folder that contains the other."""
    return f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")


def before(stage: str) -> set[str]:
    """The stages whose outputs a stage needs, directly or not."""
    direct = {
        other for other in STAGES if any(overlap(dep, out) for dep in dependencies(stage) for out in outputs(other))
    }
    return direct.union(*map(before, direct))


def test_the_stages_that_see_test_have_a_reason_to():
    found = {stage for stage in STAGES if any(map(of_test, dependencies(stage)))}
    assert found == set(SEE_TEST)


def test_fine_tuning_and_all_that_it_needs_do_not_see_test():
    assert before("finetune") == {"prepare"}
    assert not {"finetune", "prepare"} & set(SEE_TEST)


def test_the_export_takes_nothing_but_the_settings_of_an_evaluation():
    assert {path for path in dependencies("export") if of_test(path)} == {"predictions/final_eval/test.json"}


def test_another_setting_of_an_evaluation_changes_few_dependencies():
    """`dvc exp show --only-changed` has a column of 36 characters for each dependency whose content differs."""
    behind = [stage for stage in STAGES if stage == "structured_eval" or "structured_eval" in before(stage)]
    written, needed = set().union(*map(outputs, behind)), set().union(*map(dependencies, STAGES))
    changed = {dep for dep in needed if any(overlap(dep, out) for out in written)}
    assert changed == {"predictions/structured_eval", "metrics/audit.json"}


def test_the_packages_that_name_the_test_split_have_a_reason_to():
    files = (ROOT / "vlm").rglob("*.py")
    naming = re.compile(r"test\.parquet|\{split\}\.parquet|\bTEST\b")
    assert {file.relative_to(ROOT / "vlm").parts[0] for file in files if naming.search(file.read_text())} == set(
        NAME_TEST
    )


def test_an_evaluations_prior_and_calibration_come_from_train_and_validation(at_root):
    params = load_params()
    structured = params.structured_eval.model_copy(update={"prior": "batch", "calibrate": "bias"})
    job = Evaluation.of(params.model_copy(update={"structured_eval": structured}), structured=True)
    assert (job.data, job.train, job.validation) == (TEST, TRAIN, VALIDATION)
    assert search.job_of(params).inputs == [VALIDATION]


@pytest.fixture
def other_test(make_split, tmp_path, monkeypatch):
    """A repository with 24, 10 and 8 badges in data/; the function replaces those of test by others."""
    train, test = make_split("train", 24), make_split("test", 26)
    for name in ("configs", "models"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "data").mkdir()
    Path(train).rename(tmp_path / TRAIN)
    held_out = dataset.Reader(test).rows(range(26))
    dataset.write(tmp_path / VALIDATION, held_out[:10])
    dataset.write(tmp_path / TEST, held_out[10:18])
    params = load_params()
    monkeypatch.chdir(tmp_path)
    return params, lambda: dataset.write(tmp_path / TEST, held_out[18:])


def results(job, directory: Path, names: list[str]) -> dict[str, bytes]:
    directory.mkdir()
    job.run(directory, lambda event: None)
    files = [file for name in names for file in sorted(directory.glob(name))]
    assert files
    return {file.name: file.read_bytes() for file in files}


@pytest.mark.slow
def test_the_label_prior_and_the_calibration_do_not_depend_on_test(other_test, tmp_path):
    params, replace_test = other_test
    knobs = {"prior": "batch", "prior_samples": 12, "calibrate": "bias", "outlines_samples": 0}
    structured = params.structured_eval.model_copy(update=knobs)
    job = Evaluation.of(params.model_copy(update={"structured_eval": structured}), structured=True)
    chosen = ["structured_validation.*"]
    first, before_ = results(job, tmp_path / "a", chosen), json_files.read(tmp_path / "a/structured.json")
    answers = (tmp_path / "a/structured.parquet").read_bytes()
    replace_test()
    assert results(job, tmp_path / "b", chosen) == first
    assert json_files.read(tmp_path / "b/structured.json") == before_
    assert {"prior", "bias", "temperature", "calibrated_labels"} <= set(before_)
    assert (tmp_path / "b/structured.parquet").read_bytes() != answers


@pytest.mark.slow
def test_a_fine_tune_does_not_depend_on_test(other_test, finetune_params, tmp_path):
    params, replace_test = other_test
    task, model, image = params.task, params.model, params.image
    job = FineTuning(task, model, image, finetune_params, 5, TRAIN, VALIDATION)
    assert job.inputs == [TRAIN, VALIDATION]
    chosen = ["adapter/*.safetensors", "checkpoints.csv"]
    first = results(job, tmp_path / "a", chosen)
    replace_test()
    assert results(job, tmp_path / "b", chosen) == first


@pytest.mark.slow
def test_the_prompt_search_does_not_depend_on_test(other_test, tmp_path):
    params, replace_test = other_test
    job = dataclasses.replace(search.job_of(params), passes=4.0)
    job = dataclasses.replace(job, wordings=job.wordings[:3])
    chosen = ["candidates.csv", "finalists.parquet", "search.json"]
    first = results(job, tmp_path / "a", chosen)
    replace_test()
    assert results(job, tmp_path / "b", chosen) == first


@pytest.mark.slow
def test_the_choices_of_the_probes_do_not_depend_on_test(other_test, tmp_path):
    params, replace_test = other_test
    job = FeatureExtraction(params.task, params.model, params.image)

    def probes(directory: Path) -> dict[str, bytes]:
        results(job, directory, ["features.parquet"])
        baselines.write(params.task, job.splits, directory, directory, lambda event: None)
        return {f"{file.parent.name}/{file.name}": file.read_bytes() for file in directory.glob("probe_*/*")}

    first = probes(tmp_path / "a")
    replace_test()
    second = probes(tmp_path / "b")
    answers = {"probe_linear/test.parquet", "probe_nearest/test.parquet"}
    assert {name for name in first if first[name] != second[name]} == answers
