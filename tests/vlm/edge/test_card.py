"""The README of an exported classifier: what it says is run, where a Linux machine can run it."""

import math
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tree_sitter_swift
from PIL import Image
from tree_sitter import Language, Parser

from vlm.edge import card, resizing, swift
from vlm.edge.classifier import Classifier
from vlm.edge.llama import Llama

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def folder(exported, tmp_path_factory) -> Path:
    """models/tiny, exported without a fine-tune, with its README, and three pictures."""
    folder = tmp_path_factory.mktemp("edge")
    shutil.copytree(exported, folder, dirs_exist_ok=True)
    classifier = Classifier.load(folder)
    (folder / "labels.gbnf").write_text(classifier.grammar(), encoding="utf-8")
    (folder / "README.md").write_text(card.text(classifier, 16), encoding="utf-8")
    rng = np.random.default_rng(0)
    for name, size in {"small.png": (60, 90), "large.png": (700, 1100), "narrow.png": (40, 400)}.items():
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / name)
    return folder


def blocks(folder: Path, language: str) -> list[str]:
    """The README's code in a language, or without one."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return [code for name, code in found if name == language]


def flags(folder: Path) -> dict[str, str]:
    """The options in the README's command for llama-server."""
    command = next(line for line in blocks(folder, "")[1].splitlines() if line.startswith("llama-server"))
    words = shlex.split(command)[1:]
    return dict(zip(words[::2], words[1::2], strict=True))


def test_it_names_sizes_types_and_limits(folder):
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "| `model.gguf` | the language model, fine-tune merged in | F16 | 2.81 MB |" in text
    assert "| `mmproj.gguf` | the vision tower and the projector | F16 | 2.17 MB |" in text
    assert "limits of image tokens**, 8 to 16." in text
    assert f"build b{swift.BUILD}" in text
    assert "llama.cpp answered 16 validation pictures with F16 files" in text
    assert max(map(len, text.splitlines())) < 250


def test_it_says_how_to_correct_the_label_prior_if_there_is_one(folder):
    classifier = Classifier.load(folder)
    corrected = classifier.model_copy(update={"offsets": (0.5,) * len(classifier.labels)})
    without, text = card.text(classifier, 16), card.text(corrected, 1)
    assert "offset" not in without and "This is greedy decoding, see 4 above." in without
    assert "5. **Correct the label prior**" in text and "This is greedy decoding, see 4 and 5 above." in text
    assert "answered 1 validation picture with" in text
    assert max(map(len, text.splitlines())) < 250


def test_the_swift_example_parses(folder):
    (example,) = blocks(folder, "swift")
    assert not Parser(Language(tree_sitter_swift.language())).parse(example.encode()).root_node.has_error


def test_the_client_of_llama_server_gets_the_greedy_answer(folder):
    from xllamacpp import CommonParams, Server

    options, parameters = flags(folder), CommonParams()
    parameters.model.path, parameters.mmproj.path = str(folder / options["--model"]), str(folder / options["--mmproj"])
    parameters.image_min_tokens = int(options["--image-min-tokens"])
    parameters.image_max_tokens = int(options["--image-max-tokens"])
    parameters.n_ctx, parameters.n_parallel = int(options["--ctx-size"]), int(options["--parallel"])
    parameters.port, parameters.verbosity = 0, -1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    with Llama(folder, threads=1) as llama:
        names = ("small.png", "large.png", "narrow.png")
        expected = {name: llama.greedy(Image.open(folder / name)) for name in names}
    labels = Classifier.load(folder)
    labels = dict(zip(labels.answers, labels.labels, strict=True))
    server = Server(parameters)
    client = blocks(folder, "python")[0].replace(f"http://127.0.0.1:{options['--port']}", server.listening_address)
    (folder / "ask.py").write_text(client, encoding="utf-8")
    for name, answer in expected.items():
        done = subprocess.run([sys.executable, folder / "ask.py", folder / name], capture_output=True, text=True)
        assert (done.stdout, done.stderr) == (f"{labels[answer]}\n", "")


def test_the_client_resizes_to_the_processors_size(folder):
    client, limits = blocks(folder, "python")[0], Classifier.load(folder).image
    scope = {"math": math, "image": limits.model_dump()}
    exec(client[client.index("def target") : client.index("def request")], scope)
    sizes = [(60, 90), (1100, 700), (400, 40), (3, 3), (4000, 3000), (112, 80), (31, 400)]
    assert [scope["target"](*size) for size in sizes] == [resizing.target(*size, limits) for size in sizes]


def test_the_lines_for_python_print_a_label_and_its_probability(folder):
    lines = blocks(folder, "python")[1].replace("models/edge", str(folder)).replace("photo.jpg", f"{folder}/small.png")
    done = subprocess.run([sys.executable, "-c", lines], cwd=ROOT, capture_output=True, text=True)
    label, _, probability = done.stdout.strip().rpartition(" ")
    with Llama(folder, threads=1) as llama:
        expected = llama.posterior(Image.open(folder / "small.png"))
    assert (label, done.stderr) == (Classifier.load(folder).labels[expected.argmax()], "")
    assert float(probability) == pytest.approx(expected.max(), abs=1e-4)
