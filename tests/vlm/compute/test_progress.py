import re
import sys
import time

import pytest

from vlm.compute import progress
from vlm.compute.progress import Combined, ProgressBar
from vlm.config.events import Log, Progress, Scalars


def test_without_a_terminal_a_short_job_prints_one_line(capsys):
    with ProgressBar() as emit:
        for done in range(101):
            emit(Progress(done, 100, "image"))
            emit(Scalars(done, {"loss": 1.0}))
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split(" in ")[0] for line in err.splitlines()] == ["100/100 image"]


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test advances: clock[0] += 10."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_a_long_job_prints_four_lines(capsys, clock):
    with ProgressBar() as emit:
        for done in range(1001):
            emit(Progress(done, 1000, "step"))
            clock[0] += 0.09  # 22.5 s per quarter, too short for an extra line
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "250/1000 step in 00:22, 11.1/s, 01:07 to go",
        "500/1000 step in 00:45, 11.1/s, 00:45 to go",
        "750/1000 step in 01:07, 11.1/s, 00:22 to go",
        "1000/1000 step in 01:30, 11.1/s",
    ]


def test_without_a_terminal_a_line_is_printed_at_least_every_half_minute(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_SILENCE", 0.5)
    with ProgressBar() as emit:
        emit(Progress(0, 100, "image"))
        time.sleep(2.3)
    first, *_ = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"0/100 image in 00:0[12]", first)


def test_the_rate_of_a_resumed_job_excludes_earlier_work(capsys, clock):
    with ProgressBar() as emit:
        emit(Progress(900, 1000, "image"))
        clock[0] += 10
        emit(Progress(1000, 1000, "image"))
    assert capsys.readouterr().err == "1000/1000 image in 00:10, 10.0/s\n"


def test_without_a_terminal_a_job_that_has_not_reported_yet_gets_a_line(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_SILENCE", 0.5)
    with ProgressBar() as emit:
        time.sleep(2.3)
        emit(Progress(2, 2, "step"))
    first, *_, last = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"0/1 job in 00:0[12]", first)
    assert last == "2/2 step"


def test_a_finished_count_is_not_printed_again(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_SILENCE", 0.5)
    with ProgressBar() as emit:
        emit(Progress(0, 2, "step"))
        emit(Progress(2, 2, "step"))
        time.sleep(2.3)
    assert capsys.readouterr().err.count("2/2 step") == 1


@pytest.mark.parametrize("terminal", [True, False])
def test_a_new_unit_starts_a_new_bar_and_log_lines_stay_intact(capsys, monkeypatch, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    with ProgressBar() as emit:
        emit(Progress(0, 2, "train pictures"))
        emit(Progress(2, 2, "train pictures"))
        emit(Log("a line"))
        emit(Progress(0, 2, "test pictures"))
        emit(Progress(2, 2, "test pictures"))
    err = capsys.readouterr().err
    assert "a line\n" in err
    assert err.index("train pictures") < err.index("test pictures")
    assert err.count("2/2") == 2 if not terminal else err.count("2/2") >= 2


def test_a_job_that_an_earlier_run_completed_prints_one_line_without_a_rate(capsys):
    with ProgressBar() as emit:
        emit(Progress(1000, 1000, "image"))
        emit(Progress(1000, 1000, "image"))
    assert capsys.readouterr().err == "1000/1000 image\n"


def test_another_job_may_follow_while_the_results_of_the_first_are_in_use(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with ProgressBar() as first, ProgressBar() as second:
        for emit, unit in ((first, "question"), (second, "answer")):
            emit(Progress(0, 2, unit))
            emit(Progress(2, 2, unit))
    err = capsys.readouterr().err
    assert "\x1b[A" not in err  # a bar below an open one goes up again after each change
    assert err.rstrip("\n").count("\n") == 1


def test_a_count_that_starts_again_is_shown_again(capsys):
    with ProgressBar() as emit:
        for done in (0, 2, 0, 2):
            emit(Progress(done, 2, "step"))
    assert capsys.readouterr().err.count("2/2 step") == 2


def combined(*events):
    """What `Combined` emits for (shard, event)."""
    emitted = []
    receive = Combined(emitted.append)
    for shard, event in events:
        receive(shard, event)
    return emitted


def test_the_counts_of_shards_are_added_up():
    events = [(0, Progress(2, 10)), (1, Progress(3, 10)), (0, Progress(5, 10)), (1, Progress(5, 10))]
    assert combined(*events) == [Progress(done, 10) for done in (2, 5, 8, 10)]


def test_a_later_count_is_shown_when_the_earlier_one_is_complete():
    events = [
        (0, Progress(5, 10, "a")),
        (0, Progress(3, 10, "b")),
        (1, Progress(5, 10, "a")),
        (1, Progress(1, 10, "b")),
    ]
    assert combined(*events) == [
        Progress(5, 10, "a"),
        Progress(5, 10, "a"),
        Progress(10, 10, "a"),
        Progress(3, 10, "b"),
        Progress(4, 10, "b"),
    ]


def test_the_count_of_a_shard_that_starts_again_does_not_go_back():
    events = [
        (0, Progress(4, 10)),
        (1, Progress(5, 10)),
        (0, Progress(0, 10)),
        (0, Progress(3, 10)),
        (0, Progress(5, 10)),
    ]
    assert [event.done for event in combined(*events)] == [4, 9, 9, 9, 10]


def test_repeating_all_events_of_a_count_that_stopped_early_shows_nothing_less():
    """As `Shown.settle` does at the end of a training that stopped early."""
    events = [(0, Progress(done, 200, "step")) for done in (0, 30, 60)]
    assert [event.done for event in combined(*events, *events)] == [0, 30, 60, 60, 60, 60]


def test_a_message_of_several_shards_is_shown_once():
    warning, other = Log("warning: a"), Log("b")
    assert combined((1, warning), (0, warning), (2, other), (1, other)) == [warning, other]


def test_a_message_is_shown_as_often_as_one_shard_sends_it():
    text = Log("out of memory")
    assert combined((0, text), (1, text), (0, text), (1, text), (2, text)) == [text, text]
