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
from vlm.data import dataset
from vlm.evaluation import Evaluation, temperature
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
    assert list(predictions) == ["id", "label", "text", "predicted", "probabilities"]
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


def test_a_validation_split_without_rows_gets_no_answers_and_no_temperature(job, tmp_path):
    empty = tmp_path / "empty.parquet"
    dataset.write(empty, [])
    run(structured(job, validation=str(empty), calibrate=True), tmp_path / "a")
    assert len(pd.read_parquet(tmp_path / "a" / "structured_validation.parquet")) == 0
    assert (tmp_path / "a" / "structured_validation.json").read_text() == "{}\n"
    assert "temperature" not in json.loads((tmp_path / "a" / "structured.json").read_text())


def test_the_temperature_is_fitted_on_the_validation_split(job, task, make_split, tmp_path):
    validation = structured(job, validation=make_split("train", 6))
    run(dataclasses.replace(validation, calibrate=True), tmp_path / "a")
    fitted = json.loads((tmp_path / "a" / "structured.json").read_text())["temperature"]
    table = pd.read_parquet(tmp_path / "a" / "structured_validation.parquet")
    truth = [task.labels.index(label) for label in table["label"]]
    assert fitted == pytest.approx(temperature.fit(table["probabilities"], truth), rel=1e-5)
    run(validation, tmp_path / "b")
    assert "temperature" not in json.loads((tmp_path / "b" / "structured.json").read_text())


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
