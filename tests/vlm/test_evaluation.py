import dataclasses

import pandas as pd
import pytest

from vlm import dataset
from vlm.evaluation import Evaluation
from vlm.events import Progress


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


@pytest.mark.parametrize("decoding", ["raw", "outlines"])
def test_a_row_a_sample_in_the_order_of_the_split(job, decoding, task, tmp_path):
    run(dataclasses.replace(job, decoding=decoding), tmp_path / "a")
    predictions = pd.read_parquet(tmp_path / "a" / "predictions.parquet")
    ids, labels = dataset.ids_and_labels(job.data)
    assert list(predictions) == ["id", "label", "text", "predicted", "probabilities"]
    assert predictions["id"].tolist() == ids
    assert predictions["label"].tolist() == labels
    parsed = [task.parse(text) for text in predictions["text"]]
    assert [None if pd.isna(label) else label for label in predictions["predicted"]] == parsed
    if decoding == "outlines":
        assert None not in parsed


def test_progress_counts_every_sample(job, tmp_path):
    events = []
    run(job, tmp_path / "a", events.append)
    assert [event.done for event in events if isinstance(event, Progress)] == [0, 4, 8, 10]


def test_an_interrupted_run_goes_on_where_it_stopped_and_ends_with_the_same_file(job, tmp_path):
    whole = run(job, tmp_path / "whole")

    def stop_after_the_first_batch(event):
        if event.done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(job, tmp_path / "parts", stop_after_the_first_batch)
    with (tmp_path / "parts" / "answers.jsonl").open("a") as torn:
        torn.write('["half a li')
    events = []
    assert run(job, tmp_path / "parts", events.append) == whole
    assert [event.done for event in events] == [4, 8, 10]
