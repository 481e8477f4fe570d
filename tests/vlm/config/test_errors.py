import errno
import subprocess
import sys

import platformdirs
import pytest

from vlm.config.errors import InputError, reported


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("params.yaml: seed: is wrong"), 1, "error: params.yaml: seed: is wrong\n"),
        (
            KeyboardInterrupt(),
            130,
            "interrupted; what a job has finished is kept, and its next run resumes from there\n",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "/cache/x"),
            1,
            "error: the disk is full (/cache/x): free some space; the next run resumes from there\n",
        ),
        (
            RuntimeError("[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed writing file data/0"),
            1,
            "error: the disk is full (unfinished work is in {cache}): free some space; the next run resumes from there\n",
        ),
    ],
)
def test_errors_that_the_user_can_fix_are_reported_in_one_line(error, code, line, capsys):
    with pytest.raises(SystemExit) as ended, reported():
        raise error
    assert ended.value.code == code
    assert capsys.readouterr().err == line.replace("{cache}", str(platformdirs.user_cache_path("vlm-pipeline")))


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), reported():
        raise ZeroDivisionError


def test_a_full_disk_is_recognised_from_the_error_of_the_system():
    code = "from vlm.config.errors import reported\nwith reported(): open('/dev/full', 'wb', 0).write(b'x')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("error: the disk is full (")
