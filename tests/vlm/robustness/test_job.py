import dataclasses
import io
import json

import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model

from vlm.config.events import Progress
from vlm.config.params import RobustnessParams
from vlm.data import dataset
from vlm.evaluation import Evaluation, batching
from vlm.models import loading
from vlm.robustness import Robustness
from vlm.robustness.corruptions import corrupted

SAMPLES = [0, 2, 4, 6]  # evenly spaced in a split of nine


@pytest.fixture
def job(task, tiny, image_params, make_split, tmp_path):
    """Four of nine badges, clean and under two corruptions at two severities; the adapter's weights are random."""
    torch.manual_seed(0)
    base, _ = loading.load(tiny, image_params)
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules=r".*\.(q_proj|w1)", init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    params = RobustnessParams(enabled=True, samples=4, severities=[2, 5], corruptions=["spatter", "contrast"])
    return Robustness(task, tiny, image_params, 6, make_split("test", 9), str(tmp_path / "adapter"), params)


def run(job, directory, emit=lambda event: None):
    directory.mkdir()
    job.run(directory, emit)
    return (directory / "answers.parquet").read_bytes()


def test_every_answer_equals_that_of_an_evaluation_of_the_corrupted_pictures(job, tmp_path):
    run(job, tmp_path / "job")
    answers = pd.read_parquet(tmp_path / "job" / "answers.parquet")
    assert list(answers) == ["model", "corruption", "severity", "id", "label", "predicted"]
    rows = dataset.Reader(job.data).rows(SAMPLES)
    conditions = [("clean", 0), ("spatter", 2), ("spatter", 5), ("contrast", 2), ("contrast", 5)]
    expected = []
    for model, adapter in (("base", None), ("fine-tuned", job.adapter)):
        pictures = []
        for row in rows:
            for corruption, severity in conditions:
                picture, file = batching.decoded(row.image), io.BytesIO()
                if severity:
                    picture = corrupted(picture, corruption, severity, row.id)
                picture.save(file, "PNG")
                pictures.append(dataset.Row(f"{row.id}/{corruption}/{severity}", file.getvalue(), row.label))
        split = tmp_path / "corrupted.parquet"
        dataset.write(split, pictures)
        directory = tmp_path / model
        directory.mkdir()
        Evaluation(job.task, job.model, job.image, 6, str(split), engine="posterior", adapter=adapter).run(
            directory, lambda event: None
        )
        for row in pd.read_parquet(directory / "structured.parquet").itertuples():
            id_, corruption, severity = row.id.split("/")
            expected.append((model, corruption, int(severity), id_, row.label, row.predicted))
    assert list(answers.itertuples(index=False, name=None)) == expected
    assert answers["predicted"].nunique() > 2


def test_an_interrupted_run_resumes_where_it_stopped_and_ends_with_the_same_file(job, tmp_path):
    events = []
    whole = run(job, tmp_path / "whole", events.append)
    assert [(event.done, event.total) for event in events] == [
        (done, 40) for done in (0, 6, 12, 18, 20, 26, 32, 38, 40)
    ]

    def stop_in_the_second_model(event):
        if isinstance(event, Progress) and event.done == 26:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(job, tmp_path / "parts", stop_in_the_second_model)
    events = []
    job.run(tmp_path / "parts", events.append)
    assert (tmp_path / "parts" / "answers.parquet").read_bytes() == whole
    assert [event.done for event in events] == [26, 32, 38, 40]
    assert json.loads((tmp_path / "parts" / "runtime.json").read_text())["samples"] == 14


def test_shards_together_give_the_same_file(job, tmp_path):
    whole = run(job, tmp_path / "whole")
    shards = [tmp_path / name for name in "abc"]
    for i, shard in enumerate(shards):
        shard.mkdir()
        job.answer(shard, lambda event: None, (i, 3))
    (tmp_path / "merged").mkdir()
    job.merge(shards, tmp_path / "merged")
    assert (tmp_path / "merged" / "answers.parquet").read_bytes() == whole
    assert json.loads((tmp_path / "merged" / "runtime.json").read_text())["samples"] == 40


def test_without_a_number_of_samples_all_are_used(job, tmp_path):
    for samples in (None, 100):
        every = dataclasses.replace(
            job,
            robustness=RobustnessParams(enabled=True, samples=samples, severities=[3], corruptions=["contrast"]),
        )
        run(every, tmp_path / str(samples))
        answers = pd.read_parquet(tmp_path / str(samples) / "answers.parquet")
        assert len(answers) == 2 * 2 * 9
