import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[3]
PARAMS = "seed: 23\nprepare:\n  train: {train}\n  test: 600\n"
NAMES = ["structured_eval", "probe_linear", "final_eval"]


class Repository:
    """A git repository with the results of runs: a commit, and experiments where DVC keeps them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.git("init", "-q")

    def git(self, *arguments: str) -> str:
        who = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
        return subprocess.run(
            ["git", *who, *arguments], cwd=self.folder, check=True, capture_output=True, text=True
        ).stdout.strip()

    def write(
        self,
        train: int,
        accuracy: float,
        test: str = "abc",
        params: str = PARAMS,
        prompt: str = "Which?",
        unavailable=(),
    ) -> None:
        files = {"params.yaml": params.format(train=train), "plots/prepare/details.json": f'{{"train_rows": {train}}}'}
        files["configs/tasks/t.yaml"] = f"prompt: {prompt}\n"
        outs = [{"path": f"data/{split}.parquet", "md5": md5} for split, md5 in (("train", "x"), ("test", test))]
        files["dvc.lock"] = json.dumps({"stages": {"prepare": {"outs": outs}}})
        for number, name in enumerate(NAMES):
            found = accuracy + number / 10
            values = {"samples": 600, "accuracy": found, "low": found - 0.05, "high": found + 0.05, "ece": 0.1}
            files[f"plots/{name}/details.json"] = json.dumps({"unavailable": ""} if name in unavailable else values)
        for name, text in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def commit(self, *arguments: str) -> str:
        self.git("add", ".")
        self.git("commit", "-q", "--allow-empty", "-m", "run")
        return self.git("rev-parse", "HEAD")

    def experiment(self, name: str, *arguments, **values) -> None:
        """Makes what `dvc exp run --temp` leaves: a commit on top of this one, under refs/exps."""
        base = self.git("rev-parse", "HEAD")
        self.write(*arguments, **values)
        commit = self.commit()
        self.git("update-ref", f"refs/exps/{base[:2]}/{base[2:]}/{name}", commit)
        self.git("reset", "-q", "--hard", base)

    def run(self, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "vlm", "learning-curve"],
            cwd=self.folder,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(self.folder)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
        return done.stderr if code else done.stdout


@pytest.fixture
def repository(tmp_path):
    made = Repository(tmp_path)
    made.write(1600, 0.6)
    made.commit()
    return made


def test_the_table_has_every_size_with_its_interval(repository):
    repository.experiment("small", 100, 0.3)
    repository.experiment("middle", 400, 0.5)
    output = repository.run().splitlines()
    assert output[:2] == [
        "training rows    structured  linear probe    fine-tuned",
        "          100        30.0 %        40.0 %        50.0 %",
    ]
    folder = repository.folder / "plots" / "learning_curve"
    table = pd.read_csv(folder / "accuracy.csv")
    assert list(table) == ["train_rows", "name", "run", "samples", "accuracy", "low", "high"]
    assert table["train_rows"].tolist() == sorted([100, 400, 1600] * 3)
    assert table["name"].tolist() == NAMES * 3
    assert table["run"].unique().tolist() == ["small", "middle", "HEAD"]
    row = table[(table["train_rows"] == 400) & (table["name"] == "final_eval")].iloc[0]
    assert (row["accuracy"], row["low"], row["high"]) == pytest.approx((0.7, 0.65, 0.75))
    assert (folder / "accuracy.png").stat().st_size > 1000


def test_runs_with_other_settings_and_unfinished_ones_do_not_count(repository):
    repository.experiment("small", 100, 0.3)
    repository.experiment("other-seed", 200, 0.4, params=PARAMS.replace("23", "24"))
    repository.experiment("other-prompt", 400, 0.4, prompt="What?")
    (repository.folder / "plots/final_eval/details.json").unlink()
    repository.git("rm", "-q", "plots/final_eval/details.json")
    repository.git("commit", "-qm", "unfinished")
    base, unfinished = repository.git("rev-parse", "HEAD~1", "HEAD").splitlines()
    repository.git("update-ref", f"refs/exps/{base[:2]}/{base[2:]}/unfinished", unfinished)
    repository.git("reset", "-q", "--hard", base)
    lines = repository.run().splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == ["100", "1600"]


def test_numbers_are_read_as_dvc_reads_them(repository):
    params = PARAMS + "finetune:\n  learning_rate: 5e-4\n"  # text to YAML 1.1, a number to 1.2
    repository.write(1600, 0.6, params=params)
    repository.commit()
    repository.experiment("small", 100, 0.3, params=params.replace("5e-4", "0.0005"))
    assert [line.split()[0] for line in repository.run().splitlines()[1:-1]] == ["100", "1600"]


def test_without_vision_features_there_is_no_curve_of_the_probe(repository):
    repository.write(1600, 0.6, unavailable=["probe_linear"])
    repository.commit()
    repository.experiment("small", 100, 0.3, unavailable=["probe_linear"])
    assert repository.run().splitlines()[:2] == [
        "training rows    structured    fine-tuned",
        "          100        30.0 %        50.0 %",
    ]


def test_the_newest_of_equally_large_runs_counts(repository, monkeypatch):
    for name, date, accuracy in (("new", "2026-02-01T00:00:00Z", 0.4), ("old", "2026-01-01T00:00:00Z", 0.3)):
        monkeypatch.setenv("GIT_COMMITTER_DATE", date)
        repository.experiment(name, 100, accuracy)
    assert repository.run().splitlines()[1].split()[1] == "40.0"


@pytest.mark.parametrize(("accuracy", "error"), [(None, "there is one"), (0.3, "small and HEAD have different test")])
def test_what_cannot_be_compared_is_one_line(repository, accuracy, error):
    if accuracy is not None:
        repository.experiment("small", 100, accuracy, test="another")
    stderr = repository.run(code=1)
    assert stderr.startswith("error: learning-curve: ")
    assert error in stderr
    assert stderr.count("\n") == 1
    assert not (repository.folder / "plots" / "learning_curve").exists()
