import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch

import vlm.probing.job
from vlm.config.errors import InputError
from vlm.config.events import Log, Progress
from vlm.data import dataset
from vlm.evaluation import batching
from vlm.models import loading
from vlm.probing import features
from vlm.probing.pooling import NoFeatures, pooled


def run(job, directory, emit=lambda event: None):
    directory.mkdir(exist_ok=True)
    job.run(directory, emit)
    return (directory / "features.parquet").read_bytes()


def test_every_picture_has_its_features_in_the_order_of_the_splits(job, tmp_path):
    run(job, tmp_path / "a")
    table = pd.read_parquet(tmp_path / "a" / "features.parquet")
    assert list(table) == ["id", "split", "features"]
    expected = [(split, id_) for split, data in job.splits.items() for id_ in dataset.ids_and_labels(data)[0]]
    assert list(zip(table["split"], table["id"], strict=True)) == expected
    model, processor = loading.load(job.model, job.image)
    for split, matrix in features.read(tmp_path / "a" / "features.parquet").items():
        load = batching.Loader(job.splits[split], processor, job.task)
        assert np.allclose(matrix[[3]], pooled(model, load([3])), atol=1e-4)
    dimensions = json.loads((tmp_path / "a" / "features.json").read_text())["dimensions"]
    assert set(table["features"].map(len)) == {dimensions}
    runtime = json.loads((tmp_path / "a" / "runtime.json").read_text())
    assert runtime["samples"] == 62
    assert runtime["seconds"] > 0


def test_an_interrupted_run_resumes_where_it_stopped_and_ends_with_the_same_file(job, tmp_path):
    whole = run(job, tmp_path / "whole")

    def stop_after_the_first_batch(event):
        if event.done == 32:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(job, tmp_path / "parts", stop_after_the_first_batch)
    (tmp_path / "parts" / "train" / "00000032.part").write_bytes(b"torn")  # a file that a killed run left
    events = []
    assert run(job, tmp_path / "parts", events.append) == whole
    assert [event.done for event in events] == [0, 32, 40, 40, 50, 50, 62]
    assert {(event.total, event.unit) for event in events} == {(62, "picture encoded")}


def test_shards_end_with_the_same_file(job, tmp_path):
    whole = run(job, tmp_path / "whole")
    shards = [tmp_path / str(number) for number in range(3)]  # the third has no batch
    for number, shard in enumerate(shards):
        shard.mkdir()
        job.answer(shard, lambda event: None, (number, 3))
    (tmp_path / "merged").mkdir()
    job.merge(shards, tmp_path / "merged")
    assert (tmp_path / "merged" / "features.parquet").read_bytes() == whole
    assert json.loads((tmp_path / "merged" / "runtime.json").read_text())["samples"] == 62


def test_a_batch_that_does_not_fit_into_memory_is_split(job, tmp_path):
    run(job, tmp_path / "whole")
    events = []

    def refuse(module, args):
        if isinstance(module, torch.nn.Linear) and len(args[0]) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    hook = torch.nn.modules.module.register_module_forward_pre_hook(refuse)
    try:
        run(job, tmp_path / "parts", events.append)
    finally:
        hook.remove()
    whole, parts = (features.read(tmp_path / name / "features.parquet") for name in ("whole", "parts"))
    assert all(np.allclose(whole[split], parts[split], atol=1e-5) for split in whole)
    assert any(isinstance(event, Log) and "out of memory with 32 samples" in event.text for event in events)


def test_a_model_without_vision_features_leaves_empty_results_that_say_so(job, tmp_path, monkeypatch):
    load = loading.load

    def without_tower(*arguments):
        model, processor = load(*arguments)
        model.get_image_features = None
        return model, processor

    monkeypatch.setattr(loading, "load", without_tower)
    events = []
    run(job, tmp_path / "a", events.append)
    (line,) = [event.text for event in events if isinstance(event, Log)]
    assert line.startswith("warning: no probe is fitted: 'models/tiny' gives no vision features: get_image_features")
    assert features.read(tmp_path / "a" / "features.parquet") == {}
    found = json.loads((tmp_path / "a" / "features.json").read_text())
    assert found["dimensions"] == 0
    assert found["unavailable"] in line
    assert {event.total for event in events if isinstance(event, Progress)} == {62}


def test_features_that_a_later_run_can_compute_replace_the_reason_of_an_earlier_one(job, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise NoFeatures("a reason that is gone later")

    with monkeypatch.context() as patch:
        patch.setattr(vlm.probing.job, "pooled", refuse)
        run(job, tmp_path / "a")
    assert json.loads((tmp_path / "a" / "features.json").read_text())["dimensions"] == 0
    run(job, tmp_path / "a")
    found = json.loads((tmp_path / "a" / "features.json").read_text())
    assert found.keys() == {"dimensions"}
    assert found["dimensions"] > 0


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_split_without_rows_is_reported_before_the_model_is_loaded(job, tmp_path, monkeypatch, split):
    monkeypatch.setattr(loading, "load", None)
    dataset.write(tmp_path / "none.parquet", [])
    job = dataclasses.replace(job, **{split: str(tmp_path / "none.parquet")})
    with pytest.raises(InputError, match=rf"none.parquet: has no rows, .*; set prepare\.{split} "):
        run(job, tmp_path / "a")
