"""`python -m vlm`: the program around the commands."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vlm.__main__ import COMMANDS

ROOT = Path(__file__).parents[2]


def vlm(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "vlm", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_without_a_command_it_lists_them():
    done = vlm()
    assert done.returncode == 2
    assert all(f"  {name} " in done.stdout for name in COMMANDS)
    assert vlm("--help").stdout == done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_page_of_help_which_takes_no_model(command):
    done = vlm(command, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: python -m vlm {command}")


def test_an_unknown_command_is_a_line():
    done = vlm("clasify")
    assert done.returncode == 2
    assert "invalid choice: 'clasify'" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_it_ends_without_a_word_when_nobody_reads_its_output():
    """As `python -m vlm plan | head` when head has seen enough."""
    reads, writes = os.pipe()
    os.close(reads)
    command = [sys.executable, "-m", "vlm", "plan"]
    done = subprocess.run(command, cwd=ROOT, stdout=writes, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writes)
    assert (done.returncode, done.stderr) == (141, "")


def test_bad_input_of_a_command_is_a_line_and_exit_code_1():
    done = vlm("classify", "nowhere", "--top", "0")
    assert (done.returncode, done.stderr) == (1, "error: --top: 0: should be at least 1\n")
