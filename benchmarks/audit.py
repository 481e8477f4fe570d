"""How well `audit` finds problems that were planted: `python -m benchmarks.audit`.

Two data sets, each in a temporary folder: car_badges with 5 % wrong labels, 20 near copies and 10 blank pictures in all
three splits, and scikit-learn's 1,797 scanned digits with 5 % wrong labels. Both go through the pipeline's own stages:
prepare, then, after the planting, probe, structured_eval, finetune, final_eval and audit. `clean` is car_badges without
the planting, where everything that audit lists is a false alarm. Prints the figures and writes benchmarks/audit.json.

By kind, recall is the fraction of what was planted that audit lists as this kind, and precision the fraction of what it
lists that was planted. `within_8_percent` is the fraction of the wrong labels among the 8 % of the samples that audit
trusts least: by all models together, by each one where it has probabilities, and in the list of all suspects.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from vlm.audit import label_errors
from vlm.audit.audit import SPLITS as FILES
from vlm.config import load_params
from vlm.data import dataset

ROOT = Path(__file__).parents[1]
SPLITS = ("train", "validation", "test")
SEED = 23
WRONG_LABELS = 0.05  # of the samples
COPIES, BLANKS = 20, 10
WITHIN = 0.08  # of the samples
MODELS = (*label_errors.MODELS, label_errors.NEIGHBOURS)
STAGES = ("probe", "structured_eval", "finetune", "final_eval", "audit")


@dataclass
class Planted:
    """The ids of what was planted. Each copy has its original's id."""

    label_error: set[str] = field(default_factory=set)
    near_duplicate: dict[str, str] = field(default_factory=dict)
    blank: set[str] = field(default_factory=set)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("clean", "car_badges", "digits"), help="one of the three (default: all)")
    only, found = parser.parse_args().only, {}
    for case in ("clean", "car_badges", "digits"):
        if only in (None, case):
            with tempfile.TemporaryDirectory() as folder:
                found[case] = run(case, Path(folder))
            print(case, json.dumps(found[case], indent=2))
    output = Path(__file__).with_suffix(".json")
    before = json.loads(output.read_text()) if output.exists() else {}
    output.write_text(json.dumps(before | found, indent=2) + "\n")


def run(case: str, folder: Path) -> dict:
    """Prepares, plants, evaluates and audits in `folder`; returns the figures."""
    for name in ("configs", "models/tiny"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "params.yaml", folder)
    if case == "digits":
        make_digits(folder)
    stage(folder, "prepare")
    rng = np.random.default_rng(SEED)
    planted = Planted()
    if case != "clean":
        planted = plant(folder, rng, *((COPIES, BLANKS) if case == "car_badges" else (0, 0)))
    for name in STAGES:
        stage(folder, name)
    with contextlib.chdir(folder):
        return figures(planted)


def figures(planted: Planted) -> dict:
    """The figures for the audit in the current folder."""
    listed = pd.read_csv("plots/audit/suspects.csv", keep_default_na=False)
    found: dict = {"samples": sum(dataset.count(path) for path in FILES.values())}
    for kind in sorted(set(listed["kind"]) | {"label_error", "near_duplicate", "blank"}):
        rows = listed[listed["kind"] == kind]
        right = set(rows["id"]) & set(getattr(planted, kind, ()))
        if kind == "near_duplicate":
            pairs = {frozenset((row.id, row.other.partition("/")[2])) for row in rows.itertuples()}
            right = {id_ for id_, original in planted.near_duplicate.items() if {id_, original} in pairs}
        found[kind] = counted = {"planted": len(getattr(planted, kind, ())), "listed": len(rows), "right": len(right)}
        if counted["planted"]:
            counted["recall"] = round(len(right) / counted["planted"], 3)
            counted["precision"] = round(len(right) / max(len(rows), 1), 3)
    if planted.label_error:
        labels = load_params().task.labels
        judged = {"all": label_errors.judge(labels, FILES)}
        judged |= {name: label_errors.judge(labels, FILES, name) for name in MODELS}
        found["within_8_percent"] = {name: within(of_model, planted.label_error) for name, of_model in judged.items()}
        first = set(listed["id"][: round(WITHIN * found["samples"])])
        found["within_8_percent"]["list"] = round(len(first & planted.label_error) / len(planted.label_error), 3)
    return found


def within(judgement: label_errors.Judgement, wrong: set[str]) -> dict:
    """The fraction of the wrong labels among the 8 % with the lowest quality, of the samples that were judged."""
    if not judgement.samples:
        return {"samples": 0}
    order = np.argsort(judgement.quality, kind="stable")
    ids = [judgement.samples[i].id for i in order]
    there = wrong & set(ids)
    first = set(ids[: round(WITHIN * len(ids))])
    fraction = round(len(first & there) / max(len(there), 1), 3)
    return {"samples": len(ids), "accuracy": round(judgement.accuracy, 3), "fraction": fraction}


def stage(folder: Path, name: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache")}
    subprocess.run([sys.executable, "-m", f"stages.{name}"], cwd=folder, env=environment, check=True)


def make_digits(folder: Path) -> None:
    """scikit-learn's digits, 8 x 8 pixels each, as PNG files in one folder for each digit, and a task for them."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    names = "zero one two three four five six seven eight nine".split()
    for i, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / "digits" / names[digit] / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * (255 / 16)).astype(np.uint8)).save(path)
    prompt = 'prompt: {user: "Which digit do you see? One of:\\n{labels}"}\n'
    (folder / "configs/tasks/digits.yaml").write_text(
        f"source: {{folder: digits}}\nlabels: [{', '.join(names)}]\n{prompt}"
    )
    text = (folder / "params.yaml").read_text()
    for old, new in (("task: car_badges", "task: digits"), ("train: 1600", "train: null"), ("test: 600", "test: 400")):
        assert old in text
        text = text.replace(old, new, 1)
    (folder / "params.yaml").write_text(text)


def plant(folder: Path, rng: np.random.Generator, copies: int, blanks: int) -> Planted:
    """Gives 5 % of the samples another label, and adds copies and blank pictures to random splits."""
    planted, rows = Planted(), {}
    for split in SPLITS:
        reader = dataset.Reader(path := folder / f"data/{split}.parquet")
        rows[split] = reader.rows(range(dataset.count(path)))
    labels = sorted({row.label for split in SPLITS for row in rows[split]})
    places = [(split, i) for split in SPLITS for i in range(len(rows[split]))]
    for k in rng.choice(len(places), round(WRONG_LABELS * len(places)), replace=False):
        split, i = places[k]
        row = rows[split][i]
        others = [label for label in labels if label != row.label]
        rows[split][i] = dataset.Row(row.id, row.image, others[rng.integers(len(others))])
        planted.label_error.add(row.id)
    for n, k in enumerate(rng.choice(len(places), copies, replace=False)):
        split, i = places[k]
        original = rows[split][i]
        copy = dataset.Row(f"copy-{n:02d}", altered(original.image, n, rng), original.label)
        rows[SPLITS[rng.integers(3)]].append(copy)
        planted.near_duplicate[copy.id] = original.id
    for n in range(blanks):
        picture = dataset.Row(f"blank-{n:02d}", blank(n, rng), labels[rng.integers(len(labels))])
        rows[SPLITS[rng.integers(3)]].append(picture)
        planted.blank.add(picture.id)
    for split in SPLITS:
        shuffled = [rows[split][i] for i in rng.permutation(len(rows[split]))]
        dataset.write(folder / f"data/{split}.parquet", shuffled)
    return planted


def altered(picture: bytes, number: int, rng: np.random.Generator) -> bytes:
    """The picture encoded again; every second one is cropped by up to 5 % on each side, every third one is resized."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    if number % 2:
        left, top, right, bottom = rng.uniform(0, 0.05, 4)
        width, height = image.size
        right, bottom = 1 - right, 1 - bottom
        image = image.crop((round(left * width), round(top * height), round(right * width), round(bottom * height)))
    if number % 3 == 0:
        scale = rng.uniform(0.6, 1.5)
        image = image.resize((round(scale * image.width), round(scale * image.height)), Image.Resampling.BICUBIC)
    return encoded(image, rng)


def blank(number: int, rng: np.random.Generator) -> bytes:
    """A picture of one colour; every second one has a camera's noise of two grey levels."""
    colour = rng.integers(0, 256, 3)
    pixels = np.broadcast_to(colour, (128, 128, 3)) + rng.normal(0, 2.0 * (number % 2), (128, 128, 3))
    return encoded(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), rng)


def encoded(image: Image.Image, rng: np.random.Generator) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(rng.integers(60, 91)))
    return buffer.getvalue()


if __name__ == "__main__":
    main()
