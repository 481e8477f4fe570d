"""Measures the report on 6,750 samples with 49 labels, the test split of car_maker: `python -m benchmarks.report`.

The samples are invented: JPEG files of 400 x 300 pixels with about as much detail as a photo, and answers of seven
models. In a folder of its own it makes the report with `python -m vlm report`, opens it from disk in Chromium, which
`make browser` installs, and applies filters:

- make_seconds, make_cpu_seconds: the whole command; CPU time is that of all cores.
- open_seconds: from the navigation until the page is drawn and idle, the median of ROUNDS.
- filter_ms: from a filter's change until the first tiles are on the screen, the slowest filter in the median round.

Prints the numbers and writes benchmarks/report.json.
"""

import io
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from vlm.config.task import Task
from vlm.config.yaml_files import validate
from vlm.data import dataset, json_files, predictions

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOT = Path(__file__).parents[1]
SAMPLES, DISTINCT, ROUNDS = 6750, 500, 5
LABELS = [f"Label {i}" for i in range(49)]
ACCURACY = {
    "majority": 0.03, "probe_nearest": 0.5, "probe_linear": 0.7, "baseline_eval": 0.4, "structured_eval": 0.75,
    "final_eval_raw": 0.8, "final_eval": 0.85,
}  # fmt: skip
BARS = {"make_seconds": 120, "open_seconds": 3, "filter_ms": 200, "page_and_thumbnails_mb": 60}
FLAGS = """
    --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update
    --disable-sync
""".split()
# What a user does one after the other: (name of the field, value)
FILTERS = (
    ("answer", "wrong"),
    ("true", "Label 7"),
    ("true", ""),
    ("sort", "loss"),
    ("answer", ""),
    ("change", "fixed"),
)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        invent(folder)
        started = time.perf_counter()
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-m", "vlm", "report"], cwd=folder, env=environment, check=True)
        made = time.perf_counter() - started
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        kinds = ("index.html", "thumbnails", "pictures")
        page, thumbnails, pictures = (megabytes(folder / "reports" / kind) for kind in kinds)
        found = {
            "samples": SAMPLES,
            "make_seconds": round(made, 1),
            "make_cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
            **look(folder / "reports/index.html"),
            "page_mb": page,
            "thumbnails_mb": thumbnails,
            "page_and_thumbnails_mb": round(page + thumbnails, 1),
            "pictures_mb": pictures,
        }
    for key, value in found.items():
        print(f"{key:24} {value:8,g}" + (f"  (bar: {BARS[key]})" if key in BARS else ""))
    json_files.write("benchmarks/report.json", found)


def invent(folder: Path) -> None:
    """Writes configs, params.yaml, data/test.parquet and predictions/."""
    shutil.copytree(ROOT / "configs", folder / "configs")
    params = (ROOT / "params.yaml").read_text()
    (folder / "params.yaml").write_text(params.replace("task: car_badges", "task: invented"))
    task = {"source": {"folder": "pictures"}, "labels": LABELS, "prompt": {"user": "Which one? {labels}"}}
    (folder / "configs/tasks/invented.yaml").write_text(json.dumps(task))  # JSON is YAML
    rng = np.random.default_rng(0)
    truth = rng.integers(0, len(LABELS), SAMPLES)
    files = [photo(rng) for _ in range(DISTINCT)]
    rows = (dataset.Row(f"test/{i:05d}", files[i % DISTINCT], LABELS[label]) for i, label in enumerate(truth))
    (folder / "data").mkdir()
    dataset.write(folder / "data/test.parquet", rows)
    checked = validate(Task, task | {"name": "invented"}, "configs/tasks/invented.yaml")
    split = str(folder / "data/test.parquet")
    for name, accuracy in ACCURACY.items():
        wrong = (truth + rng.integers(1, 4, SAMPLES)) % len(LABELS)
        answer = np.where(rng.random(SAMPLES) < accuracy, truth, wrong)
        texts, lists = answers(rng, answer, raw=name in ("baseline_eval", "final_eval_raw"))
        predictions.write(folder / predictions.path(name), checked, split, texts, lists)


def photo(rng: np.random.Generator) -> bytes:
    """A JPEG file of 400 x 300 pixels, about 30 kB."""
    coarse = Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((400, 300), Image.Resampling.BICUBIC))
    noisy = np.clip(smooth + rng.normal(0, 6, (300, 400, 3)), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, "JPEG", quality=85)
    return file.getvalue()


def answers(rng: np.random.Generator, answer: np.ndarray, raw: bool) -> tuple[list[str], list[list[float] | None]]:
    """The texts and probabilities of answers; raw ones have no probabilities, and half of them are sentences."""
    if raw:
        return [LABELS[a] if i % 2 else f"I see {LABELS[a]} here." for i, a in enumerate(answer)], [None] * SAMPLES
    probabilities = rng.dirichlet(np.full(len(LABELS), 0.2), SAMPLES) * rng.uniform(0, 0.5, (SAMPLES, 1))
    probabilities[np.arange(SAMPLES), answer] += 1 - probabilities.sum(axis=1)
    return [json.dumps({"pred_class": LABELS[a]}) for a in answer], probabilities.tolist()


def megabytes(path: Path) -> float:
    files = [path] if path.is_file() else path.iterdir()
    return round(sum(file.stat().st_size for file in files) / 1e6, 1)


def look(file: Path) -> dict[str, float]:
    """Opens the page and applies filters, ROUNDS times."""
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        sys.exit("error: Chromium is not installed; `make browser` installs it")
    opened, filtered = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        for _ in range(ROUNDS):
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            started = time.perf_counter()
            page.goto(file.as_uri())
            drawn(page)
            opened.append(time.perf_counter() - started)
            page.goto(f"{file.as_uri()}#view=gallery")
            drawn(page)
            filtered.append(max(filter_ms(page, name, value) for name, value in FILTERS))
            page.close()
        browser.close()
    return {"open_seconds": round(statistics.median(opened), 2), "filter_ms": round(statistics.median(filtered))}


def drawn(page: "Page") -> None:
    """Waits until the browser is idle after two frames."""
    page.evaluate(
        """new Promise(done => {
            const frame = requestAnimationFrame;
            frame(() => frame(() => requestIdleCallback(() => done())));
        })"""
    )


def filter_ms(page: "Page", name: str, value: str) -> float:
    """Milliseconds from the change of a field until the frame with the new tiles has been drawn."""
    return page.evaluate(
        """([name, value]) => new Promise(done => {
            const field = document.querySelector("#filters").elements[name], started = performance.now();
            new MutationObserver((_, observer) => {
                observer.disconnect();
                requestAnimationFrame(() => setTimeout(() => done(performance.now() - started)));
            }).observe(document.querySelector("#tiles"), {childList: true});
            field.value = value;
            field.dispatchEvent(new Event("input", {bubbles: true}));
        })""",
        [name, value],
    )


if __name__ == "__main__":
    main()
