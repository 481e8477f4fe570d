"""`python -m vlm report`, in a repository of git and DVC."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.vlm.report import invented
from vlm.commands.report import default_folder

BIN = Path(sys.executable).parent
pytestmark = pytest.mark.slow


def run(folder, *command, code=0):
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(invented.ROOT)}
    for role in ("AUTHOR", "COMMITTER"):
        environment |= {f"GIT_{role}_NAME": "t", f"GIT_{role}_EMAIL": "t@localhost"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def report(folder, *options, code=0):
    return run(folder, sys.executable, "-m", "vlm", "report", *options, code=code)


def lock(epochs):
    return json.dumps({"stages": {"finetune": {"params": {"params.yaml": {"finetune": {"epochs": epochs}}}}}})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A commit with other predictions than the working tree, and one with other pictures under the same ids."""
    folder = invented.repository(tmp_path_factory.mktemp("repository") / "a", names=("structured_eval",))
    run(folder, "git", "init", "--quiet")
    run(folder, "dvc", "init", "--quiet")

    def commit(tag):
        run(folder, "dvc", "add", "--quiet", "data/test.parquet", "predictions/structured_eval")
        run(folder, "git", "add", ".")
        run(folder, "git", "commit", "--quiet", "--message", tag)
        run(folder, "git", "tag", tag)

    invented.write(folder, "dvc.lock", lock(1))
    commit("before")
    shutil.copy(folder / "predictions/structured_eval/test.parquet", folder.parent / "before.parquet")
    other = invented.repository(folder.parent / "other", names=(), seed=1)
    pictures = (folder / "data/test.parquet").read_bytes()
    (folder / "data/test.parquet").write_bytes((other / "data/test.parquet").read_bytes())
    commit("others")
    (folder / "data/test.parquet").write_bytes(pictures)
    invented.write(folder, "dvc.lock", lock(2))
    invented.write_predictions(folder, "structured_eval", invented.LABELS, 60, np.random.default_rng(9), accuracy=0.8)
    invented.write_predictions(folder, "final_eval", invented.LABELS, 60, np.random.default_rng(3))
    return folder


def test_two_revisions_side_by_side(folder):
    done = report(folder, "--against", "before")
    assert done.stdout.startswith("reports-before/index.html: 60 samples, 2 measurements, ")
    html = (folder / "reports-before/index.html").read_text()
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])
    against = data["against"]
    files = (folder.parent / "before.parquet", folder / "predictions/structured_eval/test.parquet")
    before, after = map(pd.read_parquet, files)
    was_right, is_right = (one["label"] == one["predicted"] for one in (before, after))
    pair = against["models"]["structured_eval"]
    assert (pair["gained"], pair["lost"]) == ((~was_right & is_right).sum(), (was_right & ~is_right).sum())
    assert pair["changed"] == (before["predicted"] != after["predicted"]).sum()
    assert pair["gain"] == pytest.approx(is_right.mean() - was_right.mean())
    assert [against["labels"][place] for place in pair["predicted"]] == list(before["predicted"])
    assert (against["shared"], against["missing"]) == (60, ["Fine-tuned, structured"])
    assert against["changed"] == [{"key": "finetune.epochs", "here": "2", "there": "1"}]


@pytest.mark.parametrize(
    "revision, message",
    [
        ("others", "--against: others: shares no test sample with this run, so the two cannot be compared"),
        ("nowhere", "nowhere: git has no such commit, branch, tag or experiment"),
    ],
)
def test_revisions_that_cannot_be_compared(folder, revision, message):
    done = report(folder, "--against", revision, code=1)
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (folder / default_folder(revision)).exists()


def test_the_folder_of_a_comparison():
    assert [str(default_folder(name)) for name in (None, "HEAD~1", "feature/a b")] == [
        "reports", "reports-HEAD-1", "reports-feature-a-b"
    ]  # fmt: skip
