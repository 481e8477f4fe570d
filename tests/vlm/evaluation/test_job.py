import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from vlm.config.errors import InputError
from vlm.config.events import Log, Progress
from vlm.config.params import load_params
from vlm.data import dataset
from vlm.evaluation import Evaluation, calibration, prior
from vlm.models import loading


@pytest.fixture
def job(task, tiny, image_params, make_split):
    """Raw answers to ten badges."""
    return Evaluation(task, tiny, image_params, batch_size=4, data=make_split("test", 10), raw_tokens=12)


def structured(job, engine="posterior", **values):
    """The same job with structured answers instead of raw ones."""
    return dataclasses.replace(job, raw_tokens=None, engine=engine, **values)


def run(job, directory, emit=lambda event: None):
    """Runs the job and returns its predictions file, the raw one if it has both."""
    directory.mkdir(exist_ok=True)
    job.run(directory, emit)
    return (directory / ("raw.parquet" if job.raw_tokens else "structured.parquet")).read_bytes()


@pytest.mark.parametrize("decoding", ["raw", "outlines", "posterior"])
def test_predictions_have_one_row_per_sample_in_the_order_of_the_split(job, decoding, task, tmp_path):
    run(job if decoding == "raw" else structured(job, decoding), tmp_path / "a")
    name = "raw" if decoding == "raw" else "structured"
    assert sorted(path.suffix for path in (tmp_path / "a").glob(f"{name}.*")) == [".json", ".jsonl", ".parquet"]
    predictions = pd.read_parquet(tmp_path / "a" / f"{name}.parquet")
    ids, labels = dataset.ids_and_labels(job.data)
    assert list(predictions) == ["id", "label", "text", "predicted", "probabilities", "plain_probabilities"]
    assert predictions["plain_probabilities"].isna().all()
    assert predictions["id"].tolist() == ids
    assert predictions["label"].tolist() == labels
    parsed = [task.parse(text) for text in predictions["text"]]
    assert [None if pd.isna(label) else label for label in predictions["predicted"]] == parsed
    if decoding != "raw":
        assert None not in parsed
    if decoding == "posterior":
        probabilities = np.stack(predictions["probabilities"])
        assert probabilities.sum(1) == pytest.approx(1)
        assert [task.labels[i] for i in probabilities.argmax(1)] == parsed
    else:
        assert predictions["probabilities"].isna().all()


def test_raw_and_structured_answers_in_one_job_equal_those_of_two_jobs(job, tmp_path, monkeypatch):
    raw, constrained = run(job, tmp_path / "raw"), run(structured(job, outlines_samples=6), tmp_path / "structured")
    loads, load = [], loading.load
    monkeypatch.setattr(loading, "load", lambda *arguments: loads.append(1) or load(*arguments))
    both = dataclasses.replace(job, engine="posterior", outlines_samples=6)
    assert run(both, tmp_path / "both") == raw
    assert (tmp_path / "both" / "structured.parquet").read_bytes() == constrained
    assert (tmp_path / "both" / "structured.json").read_bytes() == (
        tmp_path / "structured/structured.json"
    ).read_bytes()
    assert loads == [1]
    runtime = json.loads((tmp_path / "both" / "runtime.json").read_text())
    assert runtime["samples"] == 20
    assert runtime["seconds"] == pytest.approx(runtime["raw_seconds"] + runtime["structured_seconds"], abs=0.02)


def test_too_few_tokens_for_any_answer_cause_a_warning(job, tmp_path):
    events = []
    run(dataclasses.replace(job, raw_tokens=2), tmp_path / "a", events.append)
    assert any(
        isinstance(e, Log) and "evaluation.max_new_tokens: 2 is too few for any answer" in e.text for e in events
    )


def test_progress_counts_every_sample(job, tmp_path):
    events = []
    run(job, tmp_path / "a", events.append)
    assert [event.done for event in events if isinstance(event, Progress)] == [0, 0, 4, 8, 10]


def test_an_interrupted_run_resumes_where_it_stopped_and_ends_with_the_same_file(job, tmp_path):
    whole = run(job, tmp_path / "whole")

    def stop_after_the_first_batch(event):
        if event.done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(job, tmp_path / "parts", stop_after_the_first_batch)
    with (tmp_path / "parts" / "raw.jsonl").open("a") as torn:
        torn.write('{"rows": [4, 5')
    events = []
    assert run(job, tmp_path / "parts", events.append) == whole
    assert [event.done for event in events] == [0, 4, 8, 10]


def test_samples_of_similar_length_share_a_batch_and_results_stay_in_order(job, task, tmp_path):
    rng = np.random.default_rng(0)
    sizes = [(128, 128), (40, 200), (128, 128), (64, 64), (200, 40), (64, 64)]
    files = []
    for h, w in sizes:
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)).save(buffer, "PNG")
        files.append(buffer.getvalue())
    path = tmp_path / "mixed.parquet"
    dataset.write(path, [dataset.Row(str(i), file, task.labels[i]) for i, file in enumerate(files)])
    mixed = structured(job, data=str(path), batch_size=2)
    run(mixed, tmp_path / "mixed")
    run(dataclasses.replace(mixed, batch_size=1), tmp_path / "single")
    tables = [pd.read_parquet(tmp_path / name / "structured.parquet") for name in ("mixed", "single")]
    assert tables[0]["id"].tolist() == [str(i) for i in range(6)]
    assert np.stack(tables[0]["probabilities"]) == pytest.approx(np.stack(tables[1]["probabilities"]), abs=1e-5)
    metrics = [json.loads((tmp_path / name / "structured.json").read_text()) for name in ("mixed", "single")]
    assert metrics[0] == metrics[1]
    assert 8 <= metrics[0]["image_tokens"] <= 16


def test_outlines_also_answers_the_first_samples(job, task, tmp_path):
    run(structured(job, outlines_samples=6), tmp_path / "a")
    run(structured(job, "outlines"), tmp_path / "b")
    predicted = [pd.read_parquet(tmp_path / name / "structured.parquet")["predicted"] for name in "ab"]
    agreement = json.loads((tmp_path / "a" / "structured.json").read_text())["outlines_agreement"]
    assert agreement == (predicted[0] == predicted[1])[:6].mean()
    run(structured(job), tmp_path / "c")
    assert "outlines_agreement" not in json.loads((tmp_path / "c" / "structured.json").read_text())


@pytest.mark.parametrize("engine", ["posterior", "outlines"])
def test_the_answers_to_validation_are_those_of_a_job_of_its_own(job, engine, make_split, tmp_path):
    validation = make_split("train", 6)
    both = structured(job, engine, validation=validation)
    assert run(both, tmp_path / "both") == run(structured(job, engine), tmp_path / "test")
    own = run(structured(job, engine, data=validation), tmp_path / "own")
    assert (tmp_path / "both" / "structured_validation.parquet").read_bytes() == own
    for name, other in (("structured", "test/structured"), ("structured_validation", "own/structured")):
        assert (tmp_path / "both" / f"{name}.json").read_text() == (tmp_path / f"{other}.json").read_text()
    runtime = json.loads((tmp_path / "both" / "runtime.json").read_text())
    assert runtime["samples"] == 16


def test_a_validation_split_without_rows_gets_no_answers_and_no_temperature(job, corrected, tmp_path):
    empty = tmp_path / "empty.parquet"
    dataset.write(empty, [])
    run(dataclasses.replace(corrected, validation=str(empty), calibrate="temperature"), tmp_path / "a")
    assert len(pd.read_parquet(tmp_path / "a" / "structured_validation.parquet")) == 0
    assert (tmp_path / "a" / "structured_validation.json").read_text() == "{}\n"
    assert "temperature" not in json.loads((tmp_path / "a" / "structured.json").read_text())


@pytest.mark.parametrize("method", ["temperature", "bias"])
def test_a_calibration_is_fitted_on_the_corrected_answers_to_validation(corrected, task, method, tmp_path):
    run(dataclasses.replace(corrected, calibrate=method), tmp_path / "a")
    found = json.loads((tmp_path / "a" / "structured.json").read_text())
    table = pd.read_parquet(tmp_path / "a" / "structured_validation.parquet")
    truth = [task.labels.index(label) for label in table["label"]]
    expected = calibration.fit(method, table["probabilities"], truth)
    assert expected["calibrated_labels"] == 6
    assert {key: found[key] for key in expected} == {
        key: pytest.approx(value, rel=1e-4) for key, value in expected.items()
    }
    run(corrected, tmp_path / "b")
    assert not expected.keys() & json.loads((tmp_path / "b" / "structured.json").read_text()).keys()


# The label prior


@pytest.fixture
def corrected(job, make_split):
    """Structured answers to ten badges and six of validation, the label prior corrected with five of the six."""
    other = make_split("train", 6)
    return structured(job, validation=other, train=other, prior="batch", prior_samples=5, seed=3)


def test_a_batch_prior_is_the_mean_answer_to_training_pictures_and_is_divided_out(job, corrected, task, tmp_path):
    run(corrected, tmp_path / "a")
    run(structured(job, validation=corrected.validation), tmp_path / "plain")
    after, before = (pd.read_parquet(tmp_path / name / "structured.parquet") for name in ("a", "plain"))
    of_train = pd.read_parquet(tmp_path / "plain" / "structured_validation.parquet")["probabilities"]
    entry = json.loads((tmp_path / "a" / "structured.json").read_text())["prior"]
    assert (entry["method"], entry["samples"]) == ("batch", 5)
    rows = prior.sample(6, 5, 3)
    assert entry["probabilities"] == pytest.approx((np.stack(of_train)[rows].sum(0) + 1 / 31) / (5 + 1), abs=1e-5)
    plain = np.stack(before["probabilities"])
    assert np.stack(after["plain_probabilities"]) == pytest.approx(plain)
    expected = plain / np.array(entry["probabilities"]) ** entry["strength"]
    expected /= expected.sum(1, keepdims=True)
    assert np.stack(after["probabilities"]) == pytest.approx(expected)
    assert after["predicted"].tolist() == [task.labels[label] for label in expected.argmax(1)]
    assert [task.parse(text) for text in after["text"]] == after["predicted"].tolist()
    assert json.loads((tmp_path / "a" / "structured_validation.json").read_text())["prior"] == entry
    assert json.loads((tmp_path / "a" / "runtime.json").read_text())["samples"] == 10 + 6 + 5


def test_a_blank_prior_is_the_mean_answer_to_pictures_that_show_nothing(job, corrected, task, tmp_path):
    run(dataclasses.replace(corrected, prior="blank"), tmp_path / "a")
    entry = json.loads((tmp_path / "a" / "structured.json").read_text())["prior"]
    blank = tmp_path / "blank.parquet"
    prior.write_blank(blank, corrected.train, [0], task.labels[0], 3)
    run(structured(job, data=str(blank)), tmp_path / "b")
    answers = np.stack(pd.read_parquet(tmp_path / "b" / "structured.parquet")["probabilities"])
    assert (entry["method"], entry["samples"]) == ("blank", len(answers))
    assert entry["probabilities"] == pytest.approx((answers.sum(0) + 1 / 31) / (len(answers) + 1), abs=1e-5)


def test_the_labels_of_the_training_pictures_are_not_looked_at(corrected, task, tmp_path):
    expected = run(corrected, tmp_path / "a")
    other = tmp_path / "other.parquet"
    rows = dataset.Reader(corrected.train).rows(range(6))
    dataset.write(other, [dataclasses.replace(row, label=task.labels[0]) for row in rows])
    assert run(dataclasses.replace(corrected, train=str(other)), tmp_path / "b") == expected


def test_an_evaluation_that_is_interrupted_while_it_estimates_the_prior_resumes(corrected, tmp_path):
    whole = run(corrected, tmp_path / "whole")

    def stop(event):
        if event.unit == "image for the prior" and event.done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(corrected, tmp_path / "parts", stop)
    done = (tmp_path / "parts" / "prior.jsonl").read_bytes()
    assert run(corrected, tmp_path / "parts") == whole
    assert (tmp_path / "parts" / "prior.jsonl").read_bytes().startswith(done)


def test_outlines_is_compared_with_the_answers_before_the_correction(job, corrected, tmp_path):
    run(structured(job, outlines_samples=6), tmp_path / "plain")
    run(dataclasses.replace(corrected, outlines_samples=6), tmp_path / "a")
    plain, after = (json.loads((tmp_path / n / "structured.json").read_text()) for n in ("plain", "a"))
    assert after["outlines_agreement"] == plain["outlines_agreement"]


def test_the_settings_choose_the_prior(at_root):
    params = load_params()
    base, tuned = Evaluation.of(params, structured=True), Evaluation.of(params, True, True, "models/adapter")
    assert (base.prior, tuned.prior) == (params.structured_eval.prior, params.final_eval.prior) == ("batch", "none")
    assert (base.train, tuned.train) == ("data/train.parquet", None)
    assert "data/train.parquet" in base.inputs
    for changed in ({"engine": "outlines"}, {"prior": "none"}):
        knobs = params.structured_eval.model_copy(update=changed)
        assert Evaluation.of(params.model_copy(update={"structured_eval": knobs}), structured=True).prior == "none"


def test_a_batch_that_does_not_fit_into_memory_is_split(job, no_memory_for, tmp_path):
    posterior = structured(job)
    run(posterior, tmp_path / "whole")
    events = []
    with no_memory_for(2):
        run(posterior, tmp_path / "parts", events.append)
    tables = [pd.read_parquet(tmp_path / name / "structured.parquet") for name in ("whole", "parts")]
    assert tables[0]["predicted"].tolist() == tables[1]["predicted"].tolist()
    assert np.stack(tables[0]["probabilities"]) == pytest.approx(np.stack(tables[1]["probabilities"]), abs=1e-5)
    counts = [json.loads((tmp_path / n / "runtime.json").read_text())["split_batches"] for n in ("whole", "parts")]
    assert counts == [0, 2]  # of three batches, the last of which has two samples
    assert any(isinstance(event, Log) and "out of memory with 4 samples" in event.text for event in events)


def test_a_sample_that_does_not_fit_into_memory_is_a_one_line_error(job, no_memory_for, tmp_path):
    with no_memory_for(0), pytest.raises(InputError, match=r"image\.max_tokens: not even one sample"):
        run(structured(job), tmp_path / "a")
    assert not (tmp_path / "a" / "structured.parquet").exists()


def test_other_runtime_errors_are_passed_on(job, tmp_path):
    def refuse(module, args):
        if isinstance(module, torch.nn.Embedding):
            raise RuntimeError("shapes do not match")

    hook = torch.nn.modules.module.register_module_forward_pre_hook(refuse)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run(job, tmp_path / "a")
    hook.remove()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_samples(make_split, tmp_path):
    split = make_split("test", 640)
    code = """
import json, sys
from pathlib import Path
from vlm.evaluation.job import Evaluation
from vlm.config.params import load_params
params = load_params()
job = Evaluation(params.task, params.model, params.image, 32, sys.argv[1], engine="posterior")
Path(sys.argv[2]).mkdir()
job.run(Path(sys.argv[2]), lambda event: None)
"""
    peaks = []
    for rows in (64, 640):
        few = tmp_path / f"{rows}.parquet"
        dataset.write(few, dataset.Reader(split).rows(range(rows)))
        directory = tmp_path / str(rows)
        subprocess.run([sys.executable, "-c", code, few, directory], check=True, cwd=Path(__file__).parents[3])
        peaks.append(json.loads((directory / "runtime.json").read_text())["peak_memory_gb"])
    assert peaks[1] < 1.2 * peaks[0]
