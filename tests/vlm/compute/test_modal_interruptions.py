"""Jobs on the stand-in for Modal that are preempted, cancelled, or lose their caller."""

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "points"),
    [
        ("kill", ["put:3", "commit:2"]),  # amid the training, and after a save of unfinished or finished work
        ("int", ["put:3"]),  # leaves time to save
    ],
)
def test_a_preempted_training_ends_with_the_same_adapter(here, locally, mode, points):
    options = [word for point in points for word in ("--preempt", f"work@{point}")]
    here.run("finetune", "modal", f"preempted-{mode}", *options, "--preempt", "conduct@15s", "--preempt-mode", mode)
    assert here.output == "imported:\n"
    assert here.results(f"preempted-{mode}") == locally["finetune"]
    assert here.attempts("work") == [["PREEMPTED"] * len(points) + ["SUCCESS"]]
    assert here.attempts("conduct") == [["PREEMPTED", "SUCCESS"]]


@pytest.mark.slow
def test_a_second_client_reconnects_to_the_job_of_a_killed_one(here, locally):
    stderr = here.run("finetune", "modal", "attached", before=["twice.py", "9", "/6 step"])
    assert "first: -9" in stderr
    assert "reconnecting to the job that is running on Modal (L4)" in stderr
    assert here.results("attached") == locally["finetune"]
    assert here.attempts("work") == [["SUCCESS"]]
    assert here.attempts("conduct") == [["SUCCESS"]]


@pytest.mark.slow
def test_ctrl_c_cancels_the_job_reports_its_cost_and_the_next_run_resumes(here, locally):
    first_point = "interrupted-live/plots/metrics/train/loss.tsv"
    # The first commit is the one at the start. While the second is held, the training goes on but cannot end, so Ctrl-C
    # always comes first.
    hold = ["--hold", "work@commit:2"]
    stderr = here.run("finetune", "modal", "interrupted", *hold, before=["twice.py", "2", first_point])
    assert "first: 130" in stderr
    assert "cancelled on Modal after " in stderr
    assert " s of L4, about $0.0" in stderr
    cancelled = {event["function"] for event in here.log["events"] if event["event"] == "cancel"}
    assert cancelled == {"conduct", "work"}
    assert here.results("interrupted") == locally["finetune"]
    assert len(here.attempts("work")) == 2
