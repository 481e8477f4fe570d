import re
import sys
from pathlib import Path

import pandas as pd
import pytest

from vlm import __main__ as command_line
from vlm.data import dataset
from vlm.evaluation.intervals import wilson

ROOT = Path(__file__).parents[3]
METHODS = [
    *("structured", "structured + prior", "structured + prior + bias"),
    *("linear probe", "fine-tuned", "fine-tuned + prior"),
]


@pytest.fixture
def command(make_split, tmp_path, monkeypatch, capsys):
    """Runs the command in a repository with 24, 10 and 12 badges; returns the exit code, stdout and stderr."""
    train, test = make_split("train", 24), make_split("test", 22)
    for name in ("configs", "models"):
        (tmp_path / name).symlink_to(ROOT / name)
    params, replaced = re.subn(r"(?m)^  epochs: .*", "  epochs: 1", (ROOT / "params.yaml").read_text())
    assert replaced == 1
    (tmp_path / "params.yaml").write_text(params)
    (tmp_path / "data").mkdir()
    Path(train).rename(tmp_path / "data/train.parquet")
    held_out = dataset.Reader(test).rows(range(22))
    dataset.write(tmp_path / "data/validation.parquet", held_out[:10])
    dataset.write(tmp_path / "data/test.parquet", held_out[10:])
    monkeypatch.chdir(tmp_path)

    def run(*options: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vlm", "learning-curve", *options])
        with pytest.raises(SystemExit) as ended:
            command_line.main()
        return ended.value.code or 0, *capsys.readouterr()

    return run


def measured(stdout: str) -> list[str]:
    return [line for line in stdout.splitlines() if line.endswith("is measured")]


def test_the_table_has_all_methods_and_what_is_finished_is_not_run_again(command):
    code, stdout, _ = command("--sizes", "10", "--seeds", "1")
    assert code == 0
    assert len(measured(stdout)) == 5  # the fine-tune is measured with and without the label prior at once
    table = pd.read_csv("plots/learning_curve/accuracy.csv")
    assert list(table) == ["method", "labels", "seed", "samples", "accuracy", "low", "high"]
    assert table["method"].tolist() == METHODS
    assert table["labels"].tolist() == [0, 0, 10, 10, 10, 10]
    for row in table.itertuples():
        right = round(row.accuracy * 12)
        assert (row.samples, row.accuracy) == (12, pytest.approx(right / 12, abs=1e-6))
        assert (row.low, row.high) == pytest.approx(wilson(right, 12), abs=1e-6)
    lines = stdout.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("labelled pictures"))
    assert lines[start].split() == ["labelled", "pictures", "0", "10"]
    shown = [line.removesuffix(" %").rsplit(maxsplit=1) for line in lines[start + 1 : start + 7]]
    assert shown == [[row.method, f"{100 * row.accuracy:.1f}"] for row in table.itertuples()]
    assert Path("plots/learning_curve/accuracy.png").stat().st_size > 10_000

    first = Path("plots/learning_curve/accuracy.csv").read_bytes()
    code, stdout, stderr = command("--sizes", "10", "0", "--seeds", "1", "--out", "again")
    assert (code, measured(stdout), stderr) == (0, [], "")
    assert Path("again/accuracy.csv").read_bytes() == first


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--sizes", "10", "35"], "--sizes: 35: there are 34 labelled pictures in data/train.parquet and"),
        (["--sizes", "4"], "--sizes: 4: should be 0, or at least 5"),
        (["--sizes", "-1"], "--sizes: -1: should be 0, or at least 5"),
        (["--seeds", "0"], "--seeds: 0: should be at least 1"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(command, options, error):
    code, _, stderr = command(*options)
    assert code == 1
    assert stderr.startswith(f"error: learning-curve: {error}")
    assert stderr.count("\n") == 1
    assert not Path("plots").exists()


def test_without_data_it_says_how_to_get_them(command):
    Path("data/train.parquet").unlink()
    code, _, stderr = command("--seeds", "1")
    assert (code, stderr.count("\n")) == (1, 1)
    assert "dvc repro prepare" in stderr
