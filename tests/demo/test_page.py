"""The page in a real browser: llama.cpp in WebAssembly gives the answers of PyTorch."""

import base64
import io
import re
import shutil
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from demo import serve
from tests.demo.conftest import running
from vlm.config.errors import InputError
from vlm.config.params import load_params
from vlm.edge import gguf_files, merging, resizing
from vlm.edge.classifier import Classifier, ImageLimits
from vlm.evaluation import prior
from vlm.models import loading
from vlm.sources import badges, pictures

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
# Labels that share beginnings, one of which is a beginning of another
MODELS = ["Audi A4", "Audi A6", "BMW X5", "BMW X5 M", "Ford Focus", "Ford Fiesta", "Škoda", "Škoda Octavia", "Tesla"]


@pytest.fixture(scope="module")
def at_root():
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        yield


@pytest.fixture(scope="module")
def tiny(at_root):
    """The embedded model, its processor and the parameters."""
    params = load_params()
    params = params.model_copy(update={"model": params.model.model_copy(update={"dtype": "float32"})})
    return *loading.load(params.model, params.image), params


@pytest.fixture(scope="module")
def weights(tmp_path_factory, at_root):
    folder = tmp_path_factory.mktemp("weights")
    gguf_files.write(ROOT / "models/tiny", folder, "F16", "F16")
    return folder


@pytest.fixture(scope="module")
def export(tmp_path_factory, tiny, weights):
    """export(task) writes the files of the demo's folder for a task."""

    def write(task, offsets=()):
        _, processor, params = tiny
        folder = tmp_path_factory.mktemp("edge") / "files"
        shutil.copytree(weights, folder)
        classifier = Classifier.of(params.model_copy(update={"task": task}), processor, "0" * 64, offsets)
        classifier.with_files(folder, ("F16", "F16")).save(folder)
        return folder

    return write


@pytest.fixture(scope="module")
def edge(export, tiny):
    return export(tiny[2].task)


@pytest.fixture(scope="module")
def photos(tiny):
    """Twenty picture files of many kinds and sizes: (name, bytes)."""
    icons = list(tiny[2].task.source.badges.icons.values())
    files = []
    for i in range(20):
        jpeg = badges.render(icons[i], badges.rng_for(1, 1, i), 0.2)
        badge = Image.open(io.BytesIO(jpeg))
        files.append((f"{i}.jpg", jpeg))
        if i % 2:  # in half of them the page has something to resize
            size = (130 + 37 * i, 110 + 29 * i)
            files[-1] = (f"{i}.png", encoded(badge.resize(size, Image.Resampling.BICUBIC), "PNG"))
    badge = Image.open(io.BytesIO(files[0][1]))
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was turned by 90 degrees
    files[2] = ("turned.jpg", encoded(badge, "JPEG", exif=turned, quality=95))
    files[4] = ("grey.png", encoded(badge.convert("L").resize((97, 203)), "PNG"))
    badge.putalpha(badge.convert("L"))
    files[6] = ("transparent.png", encoded(badge, "PNG"))
    files[8] = ("large.jpg", encoded(badge.convert("RGB").resize((4000, 3000)), "JPEG"))
    return files


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def posteriors(tiny, task, files) -> np.ndarray:
    """PyTorch's probabilities, (files, labels)."""
    model, processor, _ = tiny
    return merging.posteriors(model, processor, task, [pictures.upright(data) for _, data in files]).numpy()


def target(size, limits):
    """[width, height], or None if the picture is too narrow."""
    try:
        return list(resizing.target(*size, limits))
    except InputError:
        return None


def choose(page, name, data):
    """Chooses a file and waits for what comes of it."""
    page.set_input_files("#file", {"name": name, "mimeType": "", "buffer": data})
    page.locator("#output[aria-busy=false]").wait_for()


def shown(page) -> dict[str, float]:
    rows = page.locator("#labels li").evaluate_all(
        "rows => rows.map(row => [row.dataset.label, +row.dataset.probability])"
    )
    return dict(rows)


def test_twenty_pictures_have_the_labels_of_pytorch(edge, photos, tiny, open_demo):
    task = tiny[2].task
    page = open_demo(edge)
    for (name, data), expected in zip(photos, posteriors(tiny, task, photos), strict=True):
        choose(page, name, data)
        assert page.locator("#label").inner_text() == task.labels[expected.argmax()], name
        found = shown(page)
        assert max(abs(found[label] - p) for label, p in zip(task.labels, expected, strict=True)) < 0.01, name
        assert list(found.values()) == sorted(found.values(), reverse=True)


@pytest.mark.parametrize(
    ("labels", "passes"),
    [
        (MODELS, r"\d+ passes"),
        (["犬", "cat", "Äpfel"], "1 pass"),
    ],  # a token that ends within a character, in the second
)
def test_other_labels(labels, passes, export, photos, tiny, open_demo):
    task = tiny[2].task.model_copy(update={"labels": tuple(labels), "aliases": {}})
    page = open_demo(export(task))
    for (name, data), expected in zip(photos[:4], posteriors(tiny, task, photos[:4]), strict=True):
        choose(page, name, data)
        found = shown(page)
        assert max(abs(found[label] - p) for label, p in zip(labels, expected, strict=True)) < 0.01, name
        assert re.search(rf"in {passes} through the model$", page.locator("#time").inner_text())


def test_the_label_prior_is_corrected_as_pytorch_corrects_it(export, photos, tiny, open_demo):
    task = tiny[2].task.model_copy(update={"labels": tuple(MODELS), "aliases": {}})
    plain = posteriors(tiny, task, photos[:6])
    offsets = (-np.log(plain.mean(0))).tolist()  # some labels are hardly ever the model's
    corrected = prior.apply(plain, offsets)
    assert (corrected.argmax(1) != plain.argmax(1)).any()
    page = open_demo(export(task, offsets))
    for (name, data), expected in zip(photos[:6], corrected, strict=True):
        choose(page, name, data)
        assert page.locator("#label").inner_text() == task.labels[expected.argmax()], name
        found = shown(page)
        assert max(abs(found[label] - p) for label, p in zip(task.labels, expected, strict=True)) < 0.01, name


def test_pictures_are_resized_as_by_pillow(edge, open_demo):
    page = open_demo(edge)
    for limits in (
        ImageLimits(multiple=32, min_tokens=8, max_tokens=16, tolerance=2.0, resample="bilinear"),
        ImageLimits(multiple=32, min_tokens=64, max_tokens=256, tolerance=2.0, resample="bicubic"),
        ImageLimits(multiple=28, min_tokens=10, max_tokens=40, tolerance=2.0, resample="lanczos"),
    ):
        values = limits.model_dump()
        sizes = [[width, height] for width in range(1, 700, 23) for height in (1, 16, 48, 80, 144, 331, 4000)]
        code = """async ([sizes, limits]) => {
            const { target } = await import("./resizing.js");
            const attempt = (size) => { try { return target(...size, limits); } catch { return null; } };
            return sizes.map(attempt);
        }"""
        assert page.evaluate(code, [sizes, values]) == [target(size, limits) for size in sizes]
        code = """async ([width, height, pixels, limits]) => {
            const { resized, target } = await import("./resizing.js");
            const rgb = Uint8Array.from(atob(pixels), (character) => character.charCodeAt());
            const made = resized({ width, height, rgb }, target(width, height, limits), limits.resample).rgb;
            return btoa(Array.from(made, (value) => String.fromCharCode(value)).join(""));
        }"""
        for width, height in ((400, 300), (40, 30), (97, 400)):
            # Values that no filter carries below 0 or above 255: Pillow cuts them off after either pass.
            pixels = np.random.default_rng(0).integers(80, 176, (height, width, 3), dtype=np.uint8)
            expected = np.asarray(resizing.resized(Image.fromarray(pixels), limits), dtype=int).ravel()
            sent = base64.b64encode(pixels.tobytes()).decode()
            found = np.frombuffer(base64.b64decode(page.evaluate(code, [width, height, sent, values])), np.uint8)
            assert np.abs(found - expected).max() <= 2, (limits.resample, width, height)


def test_what_cannot_be_classified_is_said_in_one_line(edge, photos, open_demo):
    page = open_demo(edge)
    problem = page.locator("#problem")
    choose(page, "notes.txt", b"not a picture")
    assert problem.inner_text() == "notes.txt is not a picture that this browser can read."
    choose(page, "line.png", encoded(Image.new("RGB", (2000, 3)), "PNG"))
    assert problem.inner_text() == "A picture of 2000 x 3 pixels is too narrow for this model."
    choose(page, *photos[0])
    expect(problem).to_be_hidden()
    assert page.locator("#label").is_visible()


@pytest.mark.parametrize(
    ("missing", "line"),
    [
        ("edge/classifier.json", "edge/classifier.json is missing; `dvc repro export` writes models/edge."),
        ("edge/mmproj.gguf", "edge/mmproj.gguf is missing; `dvc repro export` writes models/edge."),
        ("vendor/wllama/index.js", "demo/vendor/wllama/ is missing; `make demo-files` fetches it."),
    ],
)
def test_a_missing_file_is_named(edge, missing, line, open_demo):
    def prepare(page):
        page.route(f"**/{missing}", lambda route: route.fulfill(status=404))

    page = open_demo(edge, prepare=prepare, expected=["404"])
    assert page.locator("#problem").inner_text() == line
    choose(page, "notes.png", encoded(Image.new("RGB", (64, 64)), "PNG"))
    assert page.locator("#problem").inner_text() == line


def test_files_of_two_exports_are_not_mixed(export, tiny, open_demo):
    folder = export(tiny[2].task)
    with (folder / "model.gguf").open("ab") as file:
        file.write(b"\0")
    problem = open_demo(folder).locator("#problem").inner_text()
    assert problem == "edge/model.gguf is not the file that classifier.json describes; export both again."


def test_another_prompt_than_the_pipelines_is_noticed(export, tiny, open_demo):
    folder = export(tiny[2].task)
    text = (folder / "classifier.json").read_text(encoding="utf-8")
    (folder / "classifier.json").write_text(text.replace("<|im_start|>user", "<|im_start|>user user"), encoding="utf-8")
    problem = open_demo(folder).locator("#problem").inner_text()
    assert re.fullmatch(r"llama\.cpp reads \d+ tokens where the pipeline reads \d+\.", problem)


def test_it_fits_on_a_phone(edge, photos, open_demo):
    page = open_demo(edge, viewport={"width": 360, "height": 740})
    choose(page, *photos[0])
    page.locator("#all").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.locator("#labels li:visible").count() == 31


def test_it_works_with_the_keyboard(edge, photos, open_demo):
    name, data = photos[0]
    photo = {"name": name, "mimeType": "image/jpeg", "buffer": data}
    # Listens from the beginning: Playwright catches the file dialog only some time after it begins to listen.
    page = open_demo(edge, prepare=lambda page: page.on("filechooser", lambda chooser: chooser.set_files(photo)))
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Choose a picture")).to_be_focused()
    page.keyboard.press("Enter")
    page.locator("#answer").wait_for()
    assert page.locator("#labels li:visible").count() == 5
    page.get_by_role("button", name="Show all 31 labels").focus()
    page.keyboard.press("Enter")
    assert page.locator("#labels li:visible").count() == 31


def test_a_picture_is_dropped(edge, photos, open_demo):
    page = open_demo(edge)
    drop = """bytes => {
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(new File([Uint8Array.from(bytes)], "photo.jpg"));
        document.querySelector("#drop").dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true }));
    }"""
    page.evaluate(drop, list(photos[0][1]))
    page.locator("#answer").wait_for()
    assert page.locator("#picture").evaluate("picture => picture.naturalWidth") == 128


def test_the_camera(edge, open_demo):
    page = open_demo(edge, permissions=["camera"])
    camera = page.get_by_role("button", name="camera")
    camera.click()
    page.get_by_role("button", name="Take the picture").click()
    page.locator("#answer").wait_for()
    expect(page.locator("#video")).to_be_hidden()
    assert page.locator("#video").evaluate("video => video.srcObject") is None
    assert page.locator("#picture").is_visible()


def test_a_static_host_that_sets_no_headers_serves_it_too(edge, photos, tmp_path, open_demo):
    """As GitHub Pages: a folder of a site, without the headers that several threads need."""
    site = tmp_path / "site/project"
    shutil.copytree(serve.DEMO, site)
    shutil.copytree(edge, site / "edge")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site.parent)))
    with running(server) as address:
        page = open_demo(address=f"{address}project/")
        assert not page.evaluate("crossOriginIsolated")
        choose(page, *photos[0])
        assert page.locator("#label").is_visible()
