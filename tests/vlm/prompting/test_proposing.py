"""Questions from a language model: DSPy's own proposer, and a server on this machine that speaks OpenAI's protocol."""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from vlm.config.errors import InputError
from vlm.config.prompts import load_candidates
from vlm.prompting import proposing

FILE = """\
# My wordings
user:
  - Whose badge is this? {labels}  # the first
propose: {model: openai/a-model, base_url: "URL", count: 4}
"""
ANSWERS = [
    "Which maker made this car?",  # without {labels}
    "Look at the badge.\n\nIs it one of these?\n{labels}",
    "Whose badge is this? {labels}",  # in the file
    "One of {label}",  # not allowed in a task's file
]


@pytest.fixture
def server(monkeypatch):
    """(address, requests): answers with ANSWERS, one after the other."""
    monkeypatch.setenv("OPENAI_API_KEY", "not a key")
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            text = f"[[ ## proposed_instruction ## ]]\n{ANSWERS[len(requests) - 1]}\n\n[[ ## completed ## ]]"
            message = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            values = {"id": "1", "object": "chat.completion", "created": 1, "model": "a-model"}
            body = json.dumps(values | {"choices": [message], "usage": usage}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}/v1", requests
        found.shutdown()


@pytest.mark.slow
def test_questions_are_added_to_the_file(task, tmp_path, server):
    address, requests = server
    file = tmp_path / "mine.yaml"
    file.write_text(FILE.replace("URL", address))
    assert proposing.add(file, task, 1) == f"{file}: user: 2 new questions, of 4 that openai/a-model wrote"
    assert load_candidates(file, task).user == [
        "Whose badge is this? {labels}",
        "Which maker made this car?\n\n{labels}",
        "Look at the badge.\n\nIs it one of these?\n{labels}",
    ]
    assert file.read_text().startswith("# My wordings\nuser:\n  - Whose badge is this? {labels}  # the first\n")
    assert len(requests) == 4 and {request["model"] for request in requests} == {"a-model"}
    asked = json.dumps(requests[0]["messages"])
    assert json.dumps(task.prompt.user)[1:-1] in asked  # DSPy's proposer starts from the present question
    assert "- Rolls-Royce" in asked


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_one_line_and_the_file_stays(task, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(FILE.replace("URL", "http://127.0.0.1:9/v1"))
    before = file.read_text()
    with pytest.raises(InputError, match=r"mine.yaml: propose: .*127.0.0.1:9.*refused"):
        proposing.add(file, task, 1)
    assert file.read_text() == before


def test_a_file_that_names_no_model_is_one_line(task, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("order: [reversed]\n")
    with pytest.raises(InputError, match=r"mine.yaml: propose: is missing; name a model, such as {model: openai/"):
        proposing.add(file, task, 1)


def test_without_dspy_one_line_says_what_to_install(task, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "dspy", None)  # `import dspy` then raises ImportError
    file = tmp_path / "mine.yaml"
    file.write_text(FILE)
    with pytest.raises(
        InputError, match=r"mine.yaml: propose: needs DSPy, .* `uv sync --extra prompts` or `pip install"
    ):
        proposing.add(file, task, 1)
