"""`python -m vlm serve`: a real server in a process of its own, asked by a real HTTP client."""

import http.client
import io
import json
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlm.edge.classifier import Classifier
from vlm.edge.llama import Llama

ROOT = Path(__file__).parents[3]
COMMAND = [sys.executable, "-m", "vlm", "serve"]


@pytest.fixture(scope="module")
def server(exported):
    """(process, port) of a server that is stopped with Ctrl-C at the end."""
    command = [*COMMAND, str(exported), "--port", "0", "--threads", "1"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        found = re.fullmatch(r"car_badges, 31 labels: POST http://127\.0\.0\.1:(\d+)/classify; Ctrl-C stops\n", line)
        assert found, line + process.stderr.read()
        yield process, int(found[1])
    finally:
        process.kill()
        process.communicate()


def ask(server, method, path, body=None, headers=None):
    """The status and the JSON of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server[1], timeout=60)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def picture(seed=0, orientation=1) -> tuple[Image.Image, bytes]:
    """Noise as it should be seen, and a PNG of it that is turned according to its EXIF data."""
    pixels = np.random.default_rng(seed).integers(0, 255, (70, 110, 3), dtype=np.uint8)
    image, exif, buffer = Image.fromarray(pixels), Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    stored = image.transpose(Image.Transpose.ROTATE_90) if orientation == 6 else image
    stored.save(buffer, "PNG", exif=exif)
    return image, buffer.getvalue()


def narrow() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (1000, 10)).save(buffer, "PNG")
    return buffer.getvalue()


def form(data: bytes, field: str = 'name="picture"; filename="photo.png"') -> tuple[bytes, dict]:
    head = f"--border\r\nContent-Disposition: form-data; {field}\r\n\r\n".encode()
    return head + data + b"\r\n--border--\r\n", {"Content-Type": "multipart/form-data; boundary=border"}


def test_a_picture_gets_the_classifiers_answer(server, exported):
    image, upright = picture()
    with Llama(exported, threads=1) as llama:
        expected = llama.posterior(image)
    labels = Classifier.load(exported).labels
    best = np.argsort(-expected)[:5]
    turned = picture(orientation=6)[1]
    for body, headers in ((upright, {}), (turned, {"Content-Type": "image/png"}), form(upright)):
        status, answer = ask(server, "POST", "/classify", body, headers)
        assert (status, set(answer)) == (200, {"label", "probability", "labels", "milliseconds"})
        assert [entry["label"] for entry in answer["labels"]] == [labels[label] for label in best]
        found = [entry["probability"] for entry in answer["labels"]]
        assert found == pytest.approx(expected[best].tolist(), abs=1e-5)
        assert (answer["label"], answer["probability"]) == (labels[best[0]], found[0])
        assert answer["milliseconds"] > 0


def test_requests_at_the_same_time_get_their_own_answers(server):
    pictures = [picture(seed)[1] for seed in range(6)]
    alone = [ask(server, "POST", "/classify", data)[1]["labels"] for data in pictures]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda data: ask(server, "POST", "/classify", data)[1]["labels"], pictures))
    assert together == alone
    assert len({json.dumps(labels) for labels in alone}) == 6


def test_it_says_that_it_is_up(server):
    assert ask(server, "GET", "/health") == (200, {"status": "ok", "task": "car_badges", "labels": 31})


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "error"),
    [
        ("POST", "/classify", b"", {}, 400, "the picture is empty"),
        ("POST", "/classify", b"no picture", {}, 400, "the picture is in no picture format that Pillow can read"),
        ("POST", "/classify", picture()[1][:2000], {}, 400, "the picture cannot be decoded: image file is truncated"),
        ("POST", "/classify", narrow(), {}, 400, "a picture of 1000 x 10 pixels is too narrow"),
        ("POST", "/classify", *form(b"no picture"), 400, "the picture is in no picture format that Pillow can read"),
        ("POST", "/classify", *form(b"text", 'name="picture"'), 400, "the form has no file; send the picture as one"),
        ("POST", "/classify", b"x", {"Content-Type": "multipart/form-data"}, 400, "Missing boundary in multipart."),
        ("POST", "/classify", b"x" * 20_000_001, {}, 413, "the request has 20,000,001 bytes; at most 20,000,000 are"),
        ("GET", "/classify", None, {}, 405, "POST a picture to /classify"),
        ("GET", "/", None, {}, 404, "POST a picture to /classify"),
    ],
)
def test_a_bad_request_gets_one_line(server, method, path, body, headers, status, error):
    found, answer = ask(server, method, path, body, headers)
    assert (found, set(answer)) == (status, {"error"})
    assert answer["error"].startswith(error)
    assert "\n" not in answer["error"]
    assert ask(server, "GET", "/health")[0] == 200


def test_ctrl_c_stops_it_without_a_word(server):
    process, _ = server
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (0, "", "")


def test_what_keeps_it_from_starting_is_a_line(tmp_path, exported):
    def run(*arguments):
        return subprocess.run([*COMMAND, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)

    done = run(tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"error: .*/classifier\.json: cannot be read; .*\n", done.stderr)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = run(exported, "--port", port)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"error: --host 127.0.0.1 --port {port}: cannot be listened on: address already in use; choose others\n"
    )
