import http.client
import shutil
import signal
import socket
import subprocess
import sys

import pytest

from demo import serve
from tests.demo.conftest import running


@pytest.fixture
def edge(tmp_path):
    folder = tmp_path / "edge"
    folder.mkdir()
    (folder / "classifier.json").write_text("{}", encoding="utf-8")
    (folder / ".hidden").write_text("secret", encoding="utf-8")
    return folder


@pytest.fixture
def program(tmp_path):
    """A copy of the server with something in the place of wllama, as the file to run."""
    copy = tmp_path / "demo"
    shutil.copytree(serve.DEMO, copy, ignore=shutil.ignore_patterns("vendor", "__pycache__"))
    (copy / "vendor/wllama").mkdir(parents=True)
    (copy / "vendor/wllama/index.js").write_text("", encoding="utf-8")
    return copy / "serve.py"


def run(program, *arguments):
    return subprocess.run([sys.executable, program, *map(str, arguments)], capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize(
    ("path", "status", "kind"),
    [
        ("/", 200, "text/html"),
        ("/demo.js", 200, "text/javascript"),
        ("/demo.css?x=1", 200, "text/css"),
        ("/edge/classifier.json", 200, "application/json"),
        ("/edge/", 404, None),
        ("/edge/.hidden", 404, None),
        ("/edge/../../serve.py", 404, None),
        ("/edge/%2e%2e/classifier.json", 404, None),
        ("/../pyproject.toml", 404, None),
        ("/serve.py", 404, None),
        ("/vendor", 404, None),
        ("/nothing", 404, None),
    ],
)
def test_only_the_demos_files_are_served(edge, path, status, kind):
    with running(serve.server(edge, 0)) as address:
        connection = http.client.HTTPConnection(address.removeprefix("http://").rstrip("/"), timeout=10)
        connection.request("GET", path)
        response = connection.getresponse()
        assert response.status == status
        response.read()
        connection.close()
    if kind:
        assert response.getheader("Content-Type") == kind
        assert response.getheader("Cross-Origin-Opener-Policy") == "same-origin"
        assert response.getheader("Cross-Origin-Embedder-Policy") == "require-corp"


def test_it_prints_its_address_and_ends_cleanly(edge, program):
    command = [sys.executable, program, "--edge", edge]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    assert line.startswith("the demo is at http://127.0.0.1:") and line.endswith(" (Ctrl-C ends it)\n")
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output.strip(), errors) == (0, "", "")


def test_missing_files_are_one_line(edge, program, tmp_path):
    done = run(program, "--edge", tmp_path / "none")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{tmp_path / 'none'}: has no classifier.json; `dvc repro export` writes it\n"
    (program.parent / "vendor/wllama/index.js").unlink()
    done = run(program, "--edge", edge)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "demo/vendor/wllama is missing; `make demo-files` fetches it\n"


def test_a_taken_port_is_one_line(edge, program):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(program, "--edge", edge, "--port", port)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"--port {port}: address already in use; without --port a free one is taken\n"
