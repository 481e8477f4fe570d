import csv
import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from vlm.compute.request import Request
from vlm.config.errors import InputError
from vlm.config.events import Progress
from vlm.config.prompts import Wording
from vlm.data import dataset
from vlm.evaluation import Evaluation, prior
from vlm.prompting import PromptSearch


@pytest.fixture
def job(task, tiny, image_params, make_split):
    """Six wordings and twelve badges."""
    own = Wording.of(task)
    others = [
        {"answer": "label"},
        {"user": "Which?\n{labels}"},
        {"order": "reversed"},
        {"image": "last"},
        {"words": {label: label.lower() for label in task.labels if label != "smart"}},
    ]
    wordings = (own, *(own.model_copy(update=values) for values in others))
    return PromptSearch(task, tiny, image_params, 8, make_split("test", 12), wordings, 8, False, 1)


def run(job, directory, emit=lambda event: None):
    directory.mkdir()
    job.run(directory, emit)
    with (directory / "candidates.csv").open() as file:
        return {int(row["candidate"]): row for row in csv.DictReader(file)}


def posterior(job, candidate, directory):
    """(samples, labels): an evaluation's answers with the wording of a candidate."""
    directory.mkdir()
    task = job.wordings[candidate].applied(job.task)
    Evaluation(task, job.model, job.image, 8, job.data, engine="posterior").run(directory, lambda event: None)
    frame = pd.read_parquet(directory / "structured.parquet")
    truth = [task.labels.index(label) for label in frame["label"]]
    return np.stack(frame["probabilities"].to_list()), np.array(truth), frame


def test_the_table_has_the_losses_of_evaluations_and_the_finalists_their_answers(job, tmp_path):
    rows = run(job, tmp_path / "job")
    found = json.loads((tmp_path / "job" / "search.json").read_text())
    assert found["rounds"] == [6, 12] and found["samples"] == 12
    assert found["asked"] == sum(int(row["samples"]) for row in rows.values()) <= 8 * 12
    assert {row["samples"] for row in rows.values()} == {"6", "12"}
    assert rows[0]["outcome"].startswith("the task's present prompt")
    assert rows[found["winner"]]["outcome"].endswith("best")
    answers = pd.read_parquet(tmp_path / "job" / "finalists.parquet")
    finalists = [number for number, row in rows.items() if row["samples"] == "12"]
    assert set(answers["candidate"]) == set(finalists) and 2 <= len(finalists) <= 4
    for candidate in finalists:
        probabilities, truth, frame = posterior(job, candidate, tmp_path / str(candidate))
        losses = -np.log(probabilities[np.arange(12), truth])
        own = answers[answers["candidate"] == candidate].reset_index()
        assert own["id"].tolist() == frame["id"].tolist()
        assert own["predicted"].tolist() == frame["predicted"].tolist()
        assert np.allclose(own["log_loss"], losses, atol=1e-4)
        assert own["fresh"].sum() == 6
        assert float(rows[candidate]["log_loss"]) == pytest.approx(losses.mean(), abs=1e-4)
        assert float(rows[candidate]["accuracy"]) == pytest.approx((frame["label"] == frame["predicted"]).mean())
    means = answers.groupby("candidate")["log_loss"].mean()
    assert means.idxmin() == found["winner"]
    half = answers[~answers["fresh"]].groupby("candidate")["log_loss"].mean()
    assert half.idxmin() == found["best_of_half"]


def test_the_label_prior_may_be_corrected_with_the_samples_themselves(job, tmp_path):
    corrected = dataclasses.replace(job, corrected=True, wordings=job.wordings[:2])
    rows = run(corrected, tmp_path / "job")
    probabilities, truth, _ = posterior(job, 0, tmp_path / "evaluation")
    better = prior.apply(probabilities, prior.offsets(prior.estimate("batch", probabilities)))
    loss = -np.log(better[np.arange(12), truth]).mean()
    assert float(rows[0]["log_loss"]) == pytest.approx(loss, abs=1e-4)
    assert loss != pytest.approx(-np.log(probabilities[np.arange(12), truth]).mean(), abs=0.01)


def test_an_interrupted_search_resumes_and_ends_with_the_same_files(job, tmp_path):
    run(job, tmp_path / "whole")

    def stop_in_the_second_round(event):
        if isinstance(event, Progress) and event.unit == "answer in round 2 of 2" and event.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(job, tmp_path / "parts", stop_in_the_second_round)
    events = []
    job.run(tmp_path / "parts", events.append)
    for name in ("candidates.csv", "finalists.parquet", "search.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    finished = json.loads((tmp_path / "whole" / "search.json").read_text())["asked"]
    again = json.loads((tmp_path / "parts" / "runtime.json").read_text())["samples"]
    assert 0 < again < finished - 36  # the 36 answers of the first round and the first one of the second are kept
    assert [(event.done, event.total) for event in events if event.unit == "answer in round 1 of 2"][-1] == (36, 36)


def test_other_seeds_ask_about_other_samples_first(job, tmp_path):
    fresh = []
    for seed in (1, 2):
        directory = tmp_path / str(seed)
        run(dataclasses.replace(job, seed=seed, wordings=job.wordings[:2]), directory)
        answers = pd.read_parquet(directory / "finalists.parquet")
        fresh.append(set(answers[answers["fresh"]]["id"]))
    assert fresh[0] != fresh[1]


def test_the_first_of_several_containers_does_all(job, tmp_path):
    few = dataclasses.replace(job, wordings=job.wordings[:2])
    run(few, tmp_path / "whole")
    shards = [tmp_path / "a", tmp_path / "b"]
    for i, shard in enumerate(shards):
        shard.mkdir()
        few.answer(shard, lambda event: None, (i, 2))
    assert not any(shards[1].iterdir())
    (tmp_path / "merged").mkdir()
    few.merge(shards, tmp_path / "merged")
    for name in ("candidates.csv", "finalists.parquet", "search.json"):
        assert (tmp_path / "merged" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_job_can_be_sent_to_modal(job):
    settings = {"key": "k", "inputs": {}, "from_hub": False, "gpu": "L4", "larger_gpu": None, "gpu_count": 1}
    settings |= {"cpu_cores": 2, "memory_gib": 10, "dollars_per_second": 0.5, "containers": 1, "max_dollars": None}
    request = Request.of(job, **settings, seconds=3600.0, region=None)
    assert Request.model_validate_json(request.model_dump_json()).rebuilt() == job


def test_what_cannot_be_searched_is_one_line(job, tmp_path):
    with pytest.raises(
        InputError, match=r"^params.yaml: prompt_search.passes: 1 is too few: 6 candidates need at least"
    ):
        run(dataclasses.replace(job, passes=1), tmp_path / "passes")
    empty = tmp_path / "empty.parquet"
    dataset.write(empty, [])
    with pytest.raises(InputError, match=r"empty.parquet: has too few rows for a search; set prepare.validation"):
        run(dataclasses.replace(job, data=str(empty)), tmp_path / "empty")
    special = job.wordings[0].model_copy(update={"user": "<image> {labels}"})
    with pytest.raises(InputError, match=r"prompt_search: candidate 1, .*'<image>' is a special token of this model"):
        run(dataclasses.replace(job, wordings=(job.wordings[0], special)), tmp_path / "special")
