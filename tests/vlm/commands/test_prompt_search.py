"""`python -m vlm prompt-search`, and the stages prompt_search and measure_prompt_search."""

import csv
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from stages import measure_prompt_search, prompt_search
from vlm import __main__
from vlm.config.task import load_task

ROOT = Path(__file__).parents[3]


@pytest.fixture
def work(tmp_path, monkeypatch, make_split):
    """A working directory with the repository's settings and small splits of badges."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "models").symlink_to(ROOT / "models")
    text = (ROOT / "params.yaml").read_text()
    for old, new in (("prior_samples: 256", "prior_samples: 8"), ("outlines_samples: 64", "outlines_samples: 0")):
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "params.yaml").write_text(text)
    (tmp_path / "data").mkdir()
    for name, rows in (("train", 8), ("test", 16)):
        shutil.move(make_split(name, rows), tmp_path / "data" / f"{name}.parquet")
    shutil.move(make_split("test", 12), tmp_path / "data" / "validation.parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", ["vlm", "prompt-search", *options])
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    return ended.value.code


def details(work):
    return json.loads((work / "plots/prompt_search/details.json").read_text())


def make_the_present_prompt_a_bad_one(work):
    """Replaces the task's question by one that hides the labels, and writes the good one to mine.yaml."""
    file = work / "configs/tasks/car_badges.yaml"
    text = file.read_text()
    question = text[text.index("    What car maker's") :]
    file.write_text(text.replace(question, "    Say nothing.\n").replace("answer: json", "answer: label"))
    (work / "mine.yaml").write_text(f"user:\n  - |-\n{question}answer: [json]\n")


def test_a_better_prompt_becomes_a_task_and_is_measured_once_on_test(work, monkeypatch, capsys):
    make_the_present_prompt_a_bad_one(work)
    assert not command(monkeypatch, "--candidates", "mine.yaml", "--out", "better", "--sample", "4", "--seed", "3")
    lines = capsys.readouterr().out.splitlines()
    found = details(work)
    assert lines[0].startswith("prompt-search: 4 candidates for ") and lines[0].endswith(
        " passes over validation; configs/tasks/better.yaml has the best prompt; `dvc exp run -S task=better` uses it"
    )
    assert lines[1].startswith(f"prompt-search: on validation: log loss {found['chosen_on']['log_loss']:.3f} (")
    assert lines[2].startswith(f"prompt-search: on test: {100 * found['test']['accuracy']:.1f} % of 16, ")
    winner = load_task("better")
    assert winner.prompt.user == load_task("better").prompt.user != load_task("car_badges").prompt.user or (
        winner.answer_form == "json"
    )
    assert (work / "predictions/prompt_search/task.yaml").read_text() == (
        work / "configs/tasks/better.yaml"
    ).read_text()
    assert found["winner"] != 0 and found["rounds"] == [6, 12]
    assert found["chosen_on"]["samples"] == 12 and found["held_out"]["samples"] == 6 and found["test"]["samples"] == 16
    assert found["chosen_on"]["log_loss"] < found["chosen_on"]["present_log_loss"]
    assert {"gain", "gain_low", "gain_high", "mcnemar_p"} < set(found["test"])
    with (work / "plots/prompt_search/candidates.csv").open() as table:
        assert len(list(csv.DictReader(table))) == 4


def test_if_the_present_prompt_wins_nothing_is_written_and_test_is_not_read(work, monkeypatch, capsys):
    (work / "data/test.parquet").unlink()
    (work / "mine.yaml").write_text("words: [lower]\n")  # tiny writes no makers in lower case
    assert not command(monkeypatch, "--candidates", "mine.yaml")
    first, second = capsys.readouterr().out.splitlines()
    assert "the present prompt is the best of them: there is no new task" in first
    assert re.search(
        r"on validation: the present prompt has log loss [\d.]+ and accuracy [\d.]+ % on 12 samples", second
    )
    assert details(work)["winner"] == 0 and "test" not in details(work)
    assert not (work / "configs/tasks/car_badges_searched.yaml").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "car_maker"], "error: --out: configs/tasks/car_maker.yaml is there, and the prompt search did not"),
        (
            ["--candidates", "none.yaml"],
            "error: prompt_search.candidates: there is no file none.yaml; configs/prompts has",
        ),
        (["--sample", "1"], "error: --sample: 1: should be at least 2"),
        (["--passes", "0.5"], "error: --passes: 0.5: should be at least 1"),
        (["--seed", "-1"], "error: --seed: -1: should be at least 0"),
        (["--propose"], "error: configs/prompts/car_badges.yaml: propose: is missing; name a model"),
    ],
)
def test_wrong_options_are_one_line(work, monkeypatch, capsys, options, message):
    assert command(monkeypatch, *options) == 1
    error = capsys.readouterr().err
    assert error.startswith(message) and error.count("\n") == 1


def test_switched_off_the_stages_leave_empty_outputs_and_say_how_to_switch_the_search_on(work, capsys):
    prompt_search.main()
    measure_prompt_search.main()
    assert capsys.readouterr().out.splitlines() == [
        "prompt_search: switched off; `dvc exp run -S prompt_search.enabled=true` switches it on",
        "measure_prompt_search: nothing to measure; the prompt search is switched off",
    ]
    assert details(work) == {}
    with (work / "plots/prompt_search/candidates.csv").open() as table:
        assert list(csv.DictReader(table)) == []
    assert json.loads((work / "metrics/runtime/prompt_search.json").read_text())["samples"] == 0


def test_switched_on_the_stages_do_what_the_command_does(work, monkeypatch, capsys):
    text = (work / "params.yaml").read_text()
    (work / "params.yaml").write_text(
        text.replace(
            "prompt_search:\n  enabled: false\n  candidates: null ",
            "prompt_search:\n  enabled: true\n  candidates: few ",
        )
    )
    (work / "configs/prompts/few.yaml").write_text("order: [reversed]\n")
    prompt_search.main()
    measure_prompt_search.main()
    by_stages = capsys.readouterr().out.replace("measure_prompt_search: ", "").replace("prompt_search: ", "")
    written = outputs(work)
    assert not command(monkeypatch)
    assert capsys.readouterr().out.replace("prompt-search: ", "") == by_stages
    assert outputs(work) == written and {path.parent.name for path in written} == {"prompt_search"}


def test_a_search_that_fails_while_it_answers_test_does_not_ask_about_validation_again(work, monkeypatch, capsys):
    make_the_present_prompt_a_bad_one(work)
    data = (work / "data/test.parquet").read_bytes()
    (work / "data/test.parquet").unlink()
    assert command(monkeypatch, "--candidates", "mine.yaml") == 1
    assert not (work / "predictions").exists() and not (work / "configs/tasks/car_badges_searched.yaml").exists()
    capsys.readouterr()
    (work / "data/test.parquet").write_bytes(data)
    assert not command(monkeypatch, "--candidates", "mine.yaml")
    said = capsys.readouterr()
    assert "resuming the unfinished work of an earlier run\n" in said.err
    rounds = [line for line in said.err.splitlines() if " answer in round " in line]
    # Without a time, as nothing was asked
    assert [re.fullmatch(r"(\d+)/\1 answer in round (\d) of 2", line)[2] for line in rounds] == ["1", "2"]
    assert "on test" in said.out


def outputs(work):
    folders = (work / "predictions/prompt_search", work / "plots/prompt_search")
    return {path: path.read_bytes() for folder in folders for path in folder.iterdir()}
