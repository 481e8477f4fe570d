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
from vlm.evaluation.job import Evaluation


@pytest.fixture
def job(task, tiny, image_params, make_split):
    return Evaluation(
        task=task,
        model=tiny,
        image=image_params,
        decoding="raw",
        batch_size=4,
        max_new_tokens=12,
        data=make_split("test", 10),
    )


def run(job, directory, emit=lambda event: None):
    directory.mkdir(exist_ok=True)
    job.run(directory, emit)
    return (directory / "predictions.parquet").read_bytes()


@pytest.mark.parametrize("decoding", ["raw", "outlines", "posterior"])
def test_a_row_a_sample_in_the_order_of_the_split(job, decoding, task, tmp_path):
    run(dataclasses.replace(job, decoding=decoding), tmp_path / "a")
    predictions = pd.read_parquet(tmp_path / "a" / "predictions.parquet")
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


def test_progress_counts_every_sample(job, tmp_path):
    events = []
    run(job, tmp_path / "a", events.append)
    assert [event.done for event in events if isinstance(event, Progress)] == [0, 0, 4, 8, 10]


def test_an_interrupted_run_goes_on_where_it_stopped_and_ends_with_the_same_file(job, tmp_path):
    whole = run(job, tmp_path / "whole")

    def stop_after_the_first_batch(event):
        if event.done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(job, tmp_path / "parts", stop_after_the_first_batch)
    with (tmp_path / "parts" / "answers.jsonl").open("a") as torn:
        torn.write('{"rows": [4, 5')
    events = []
    assert run(job, tmp_path / "parts", events.append) == whole
    assert [event.done for event in events] == [0, 4, 8, 10]


def test_samples_of_like_length_go_together_and_come_back_in_order(job, task, tmp_path):
    rng = np.random.default_rng(0)
    sizes = [(128, 128), (40, 200), (128, 128), (64, 64), (200, 40), (64, 64)]
    files = []
    for h, w in sizes:
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)).save(buffer, "PNG")
        files.append(buffer.getvalue())
    path = tmp_path / "mixed.parquet"
    dataset.write(path, [dataset.Row(str(i), file, task.labels[i]) for i, file in enumerate(files)])
    mixed = dataclasses.replace(job, decoding="posterior", data=str(path), batch_size=2)
    run(mixed, tmp_path / "mixed")
    run(dataclasses.replace(mixed, batch_size=1), tmp_path / "single")
    tables = [pd.read_parquet(tmp_path / name / "predictions.parquet") for name in ("mixed", "single")]
    assert tables[0]["id"].tolist() == [str(i) for i in range(6)]
    assert np.stack(tables[0]["probabilities"]) == pytest.approx(np.stack(tables[1]["probabilities"]), abs=1e-5)
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("mixed", "single")]
    assert metrics[0] == metrics[1]
    assert 8 <= metrics[0]["image_tokens"] <= 16


def test_outlines_answers_the_first_samples_too(job, task, tmp_path):
    run(dataclasses.replace(job, decoding="posterior", outlines_samples=6), tmp_path / "a")
    run(dataclasses.replace(job, decoding="outlines"), tmp_path / "b")
    predicted = [pd.read_parquet(tmp_path / name / "predictions.parquet")["predicted"] for name in "ab"]
    agreement = json.loads((tmp_path / "a" / "metrics.json").read_text())["outlines_agreement"]
    assert agreement == (predicted[0] == predicted[1])[:6].mean()
    run(dataclasses.replace(job, decoding="posterior"), tmp_path / "c")
    assert "outlines_agreement" not in json.loads((tmp_path / "c" / "metrics.json").read_text())


def test_calibration_answers_the_validation_split_too(job, make_split, tmp_path):
    validation = make_split("train", 6)
    run(dataclasses.replace(job, decoding="posterior", calibrate_on=validation), tmp_path / "a")
    table = pd.read_parquet(tmp_path / "a" / "calibration.parquet")
    assert table["id"].tolist() == dataset.ids_and_labels(validation)[0]
    assert np.stack(table["probabilities"]).sum(1) == pytest.approx(1)


def test_a_batch_that_does_not_fit_goes_through_in_parts(job, no_memory_for, tmp_path):
    posterior = dataclasses.replace(job, decoding="posterior")
    run(posterior, tmp_path / "whole")
    events = []
    with no_memory_for(2):
        run(posterior, tmp_path / "parts", events.append)
    tables = [pd.read_parquet(tmp_path / name / "predictions.parquet") for name in ("whole", "parts")]
    assert tables[0]["predicted"].tolist() == tables[1]["predicted"].tolist()
    assert np.stack(tables[0]["probabilities"]) == pytest.approx(np.stack(tables[1]["probabilities"]), abs=1e-5)
    counts = [json.loads((tmp_path / n / "metrics.json").read_text())["split_batches"] for n in ("whole", "parts")]
    assert counts == [0, 2]  # of three, the last has two samples
    assert any(isinstance(event, Log) and "out of memory with 4 samples" in event.text for event in events)


def test_a_sample_that_does_not_fit_is_one_line_and_the_finished_batches_stay(job, no_memory_for, tmp_path):
    with no_memory_for(0), pytest.raises(InputError, match=r"evaluation\.batch_size: not even one sample"):
        run(dataclasses.replace(job, decoding="posterior"), tmp_path / "a")
    assert not (tmp_path / "a" / "predictions.parquet").exists()


def test_other_runtime_errors_are_bugs(job, tmp_path):
    def refuse(module, args):
        if isinstance(module, torch.nn.Embedding):
            raise RuntimeError("shapes do not match")

    hook = torch.nn.modules.module.register_module_forward_pre_hook(refuse)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run(job, tmp_path / "a")
    hook.remove()


@pytest.mark.slow
def test_ten_times_the_samples_take_no_more_memory(make_split, tmp_path):
    split = make_split("test", 640)
    code = """
import json, sys
from pathlib import Path
from vlm.evaluation.job import Evaluation
from vlm.config.params import load_params
params = load_params()
job = Evaluation(params.task, params.model, params.image, "posterior", 32, sys.argv[1])
Path(sys.argv[2]).mkdir()
job.run(Path(sys.argv[2]), lambda event: None)
"""
    peaks = []
    for rows in (64, 640):
        few = tmp_path / f"{rows}.parquet"
        dataset.write(few, dataset.Reader(split).rows(range(rows)))
        directory = tmp_path / str(rows)
        subprocess.run([sys.executable, "-c", code, few, directory], check=True, cwd=Path(__file__).parents[2])
        peaks.append(json.loads((directory / "runtime.json").read_text())["peak_memory_gb"])
    assert peaks[1] < 1.2 * peaks[0]
