"""Classifier.swift is parsed, its calls are compared with llama.cpp's headers, and their sequence is run in Python.

It is not compiled: there is no Swift compiler here.
"""

import inspect
import json
import re
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tree_sitter_swift
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from tree_sitter import Language, Node, Parser

from tests.vlm.edge import swift_session
from tests.vlm.edge.swift_arithmetic import Pixels
from vlm.config.errors import InputError
from vlm.config.params import load_params
from vlm.config.task import Task
from vlm.edge import gguf_files, merging, resizing, swift
from vlm.edge.classifier import Classifier, ImageLimits, Model, Prompt, Tokens
from vlm.evaluation import prior
from vlm.models import loading

HEADERS = json.loads(Path(__file__).with_name("llama_cpp_signatures.json").read_text(encoding="utf-8"))
STRUCTS = {
    "llama_model_params": swift_session.ModelParams,
    "llama_context_params": swift_session.ContextParams,
    "mtmd_context_params": swift_session.VisionParams,
    "mtmd_input_text": swift_session.InputText,
    "llama_batch": swift_session.Batch,
}
# Labels that share beginnings, look like Swift, or have no letters that an identifier could have
HOSTILE = [
    "Land", "Land Rover", "Land Rover Sport", "BMW X5", "BMW-X5", "bmw x5", "3 Series", "3-series", "C", "C++", "C2",
    "class", "default", "self", "init", "none", "allCases", "rawValue", "Type", "_", "a_b", "🚗", "🚕", "...", "Škoda", "汽车", "हिन्दी",
    "x²", "٣", "\u0301e", 'say "hi"', "back\\slash", "\\(fatalError())", "two\nlines", "tab\tbed", "nul\0", "\u2028", "\u202eabc", '"""', "// no", "}",
]  # fmt: skip
SETS = [HOSTILE, HOSTILE[::-1], ["only"], ["a", "b"], [str(number) for number in range(200)]]


def classifier(labels, prompt=("before", "after"), resample="bilinear") -> Classifier:
    """One whose tokens are the labels' characters."""
    return Classifier(
        version=1,
        task="cars",
        labels=labels,
        answers=labels,
        prompt=Prompt(before=prompt[0], after=prompt[1]),
        image=ImageLimits(multiple=32, min_tokens=8, max_tokens=16, tolerance=2.0, resample=resample),
        tokens=Tokens(before=5, after=7, around_image=2, answers=[[*map(ord, label), 7] for label in labels]),
        model=Model(id="models/tiny", revision=None, adapter_sha256="0" * 64),
        files={},
    )


def parsed(text: str) -> Node:
    return Parser(Language(tree_sitter_swift.language())).parse(text.encode()).root_node


def nodes(node: Node, *types: str) -> Iterator[Node]:
    if not types or node.type in types:
        yield node
    for child in node.children:
        yield from nodes(child, *types)


def text_of(node: Node) -> str:
    return node.text.decode()


def errors(root: Node) -> list[str]:
    return [f"{node.start_point}: {text_of(node)}" for node in nodes(root) if node.type == "ERROR" or node.is_missing]


def value(literal: str):
    """The value of a literal: a string, a number, or arrays of numbers."""
    swift_escapes = re.sub(r"\\u\{([0-9A-F]+)\}", lambda found: json.dumps(chr(int(found[1], 16)))[1:-1], literal)
    return json.loads(re.sub(r",\s*\]", "]", swift_escapes))


def constants(root: Node) -> dict[str, dict]:
    """The constants in Prompt, Answers and Pixels."""
    found = {}
    for kind in nodes(root, "class_declaration"):
        name = text_of(kind.child_by_field_name("name"))
        if name in ("Prompt", "Answers", "Pixels"):
            found[name] = {
                text_of(declared.child_by_field_name("name")): value(text_of(declared.child_by_field_name("value")))
                for declared in nodes(kind, "property_declaration")
                if text_of(declared).startswith("static let")
            }
    return found


def cases(root: Node) -> dict[str, str]:
    label = next(kind for kind in nodes(root, "class_declaration") if text_of(kind).startswith("enum Label"))
    return {
        text_of(entry.child_by_field_name("name")): value(text_of(entry.child_by_field_name("raw_value")))
        for entry in nodes(label, "enum_entry")
    }


@pytest.mark.parametrize("labels", SETS)
@pytest.mark.parametrize("resample", ["bilinear", "bicubic", "lanczos"])
def test_it_parses_with_all_labels_and_values(labels, resample):
    prompt = ('<|start|>\\(1 + 1) "quoted"\n', "\r\n\t\u2029汽车\\")
    root = parsed(swift.source(classifier(labels, prompt, resample)))
    assert not errors(root)
    assert list(cases(root).values()) == labels
    assert (constants(root)["Prompt"]["before"], constants(root)["Prompt"]["after"]) == prompt
    assert (constants(root)["Pixels"]["minTokens"], constants(root)["Pixels"]["maxTokens"]) == (8, 16)


def test_names_of_labels():
    names = {
        "Acura": "acura", "BMW X5": "bmwX5", "Rolls-Royce": "rollsRoyce", "McLaren": "mcLaren", "iPhone 15": "iPhone15",
        "3 Series": "_3Series", "class": "`class`", "self": "self_", "none": "none_", "🚗": "label", "Škoda": "škoda",
        "汽车": "汽车", "bmw x5": "bmwX52", "🚕": "label2", "x²": "x", "a_b": "aB",
    }  # fmt: skip
    assert dict(zip(names, swift.identifiers(list(names)), strict=True)) == names


@given(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=8, unique=True))
def test_any_labels_have_distinct_names_which_swift_reads(labels):
    names = swift.identifiers(labels)
    assert len(set(names)) == len(labels)
    source = "enum Label: String {\n" + "".join(
        f"    case {name} = {swift.literal(label)}\n" for name, label in zip(names, labels, strict=True)
    )
    root = parsed(source + "}\n")
    assert not errors(root)
    assert list(cases(root).values()) == labels
    assert not list(nodes(root, "interpolated_expression"))


def test_labels_that_are_one_string_in_swift_are_an_error():
    with pytest.raises(InputError, match=r"configs/tasks/cars.yaml: labels: '\\xe9' and 'e\\u0301' look the same"):
        swift.source(classifier(["\xe9", "e\u0301"]))


def test_every_call_of_llama_cpp_is_in_its_headers():
    assert swift_session.build() == swift.BUILD == HEADERS["build"], "see swift_session.py"
    for name, fields in HEADERS["structs"].items():
        assert [field for field, _ in STRUCTS[name]._fields_] == fields
    root = parsed(swift.source(classifier(["a", "b"])))
    called = {}
    for call in nodes(root, "call_expression"):
        name = text_of(call.children[0])
        if name.startswith(("llama_", "mtmd_")):
            called[name] = len(list(call.children[1].children[0].named_children))
    assert called.pop("mtmd_input_text") == len(HEADERS["structs"]["mtmd_input_text"])
    assert called == {name: HEADERS["functions"].get(name) for name in called}
    assert [name for name in called if not hasattr(swift_session.library(), name)] == []
    options = {"modelOptions": "llama_model_params", "options": "llama_context_params", "batch": "llama_batch"}
    options |= {"visionOptions": "mtmd_context_params"}
    set_fields = re.findall(r"\b(modelOptions|options|visionOptions|batch)\.(\w+)", text_of(root))
    assert {("visionOptions", "image_min_tokens"), ("visionOptions", "image_max_tokens")} < set(set_fields)
    assert [pair for pair in set_fields if pair[1] not in HEADERS["structs"][options[pair[0]]]] == []


def test_python_makes_the_same_calls_in_the_same_order():
    pattern = r"\b((?:llama|mtmd)_[a-z_]+)(?=\()"
    in_swift = re.findall(pattern, swift.source(classifier(["a", "b"])))
    in_python = re.findall(r"\bc\.((?:llama|mtmd)_\w+)", inspect.getsource(swift_session.Session))
    in_swift.remove("mtmd_input_text")
    assert in_swift == in_python


def translated(resample, width, height, content=b"") -> Pixels:
    source = swift.source(classifier(["a", "b"], resample=resample))
    return Pixels(source, constants(parsed(source))["Pixels"], width, height, content)


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_it_gives_pictures_the_processors_size(width, height):
    found = ARITHMETIC.call("target", width, height)
    narrow = found["width"] * found["height"] > LIMITS.max_tokens * LIMITS.multiple**2
    with pytest.raises(InputError, match="too narrow") if narrow else nullcontext():
        assert resizing.target(width, height, LIMITS) == (found["width"], found["height"])


LIMITS = classifier(["a"]).image
ARITHMETIC = translated("bilinear", 1, 1)


@pytest.mark.parametrize("resample", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(150, 100), (20, 31), (16, 160)])
def test_it_resizes_as_pillow_does(resample, size):
    width, height = resizing.target(*size, LIMITS)
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    # Pillow chooses which side comes first. That changes values of noise, since those beyond 0 and 255 are cut off.
    filter_ = Image.Resampling[resample.upper()]
    expected = Image.fromarray(pixels).resize((width, size[1]), filter_).resize((width, height), filter_)
    across = translated(resample, *size, pixels.tobytes()).call("scaledAndTransposed", width)
    found = across.call("scaledAndTransposed", height)
    assert (found.width, found.height) == expected.size
    difference = np.abs(np.reshape(found.bytes, (found.height, found.width, 3)) - np.asarray(expected, dtype=int))
    assert difference.max() <= 1  # Pillow rounds the weights


@pytest.mark.parametrize("orientation", range(1, 9))
def test_it_turns_pictures_upright_as_pillow_does(orientation):
    pixels = np.arange(3 * 5 * 3, dtype=np.uint8).reshape(3, 5, 3)
    image, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = orientation
    image.info["exif"] = exif.tobytes()
    expected = ImageOps.exif_transpose(image)
    found = translated("bilinear", 5, 3, pixels.tobytes()).call("upright", SimpleNamespace(rawValue=orientation))
    assert (found.width, found.height) == expected.size
    assert bytes(found.bytes) == expected.tobytes()


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """models/tiny as GGUF files."""
    folder = tmp_path_factory.mktemp("edge")
    gguf_files.write(Path(__file__).parents[3] / "models/tiny", folder, "F16", "F16")
    return folder


CAR_LABELS = ["Land", "Land Rover", "Land Rover Sport", 'say "hi"', "back\\slash", "Škoda", "🚗", "🚕", "C", "C++"]


@pytest.mark.parametrize("spread", [0.0, 2.0])
@pytest.mark.parametrize(
    ("labels", "form"), [(None, "json"), (CAR_LABELS, "json"), (CAR_LABELS, "label"), (["Tesla"], "json")]
)
def test_its_call_sequence_gives_the_probabilities_of_pytorch(labels, form, spread, files, at_root):
    """Without a correction of the label prior, and with a random one."""
    params = load_params()
    if labels:
        prompt = {"system": "You know cars.", "user": "Which?\n{labels}"}
        task = Task(name="cars", source={"folder": "photos"}, labels=labels, prompt=prompt, answer=form)
        params = params.model_copy(update={"task": task})
    model, processor = loading.load(params.model, params.image)
    rng = np.random.default_rng(0)
    offsets = rng.normal(scale=spread, size=len(params.task.labels)).tolist() if spread else []
    exported = Classifier.of(params, processor, "0" * 64, offsets)
    images = [
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)) for size in ((60, 100), (500, 300), (90, 300))
    ]
    expected = merging.posteriors(model, processor, params.task, images).numpy()
    expected = prior.apply(expected, offsets) if offsets else expected
    session = swift_session.Session(swift_session.library(), files, constants(parsed(swift.source(exported))))
    try:
        for image, row in zip(images, expected, strict=True):
            small = resizing.resized(image, exported.image)
            found = session.probabilities(*small.size, small.tobytes())
            assert found.argmax() == row.argmax()
            np.testing.assert_allclose(found, row, atol=0.01)
    finally:
        session.close()
