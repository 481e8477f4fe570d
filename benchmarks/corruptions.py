"""vlm/robustness/corruptions.py beside imagecorruptions-imaug, which corrupts pictures with OpenCV and scikit-image.

    uv run --with imagecorruptions-imaug python -m benchmarks.corruptions

Takes samples of car_badges' test split and prints, for each corruption and severity, the mean absolute change of a
pixel's value (of 255) and the accuracy of the base model, each for both implementations. Writes
benchmarks/corruptions.json. Needs data/test.parquet: `dvc repro prepare`, or `dvc pull`.
"""

import io
import json
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from imagecorruptions import corrupt
from PIL import Image

from vlm.config import load_params
from vlm.data import dataset
from vlm.evaluation import TEST, Evaluation
from vlm.evaluation.batching import decoded
from vlm.robustness.corruptions import CORRUPTIONS, corrupted

SAMPLES = 200
SEVERITIES = (1, 3, 5)


def theirs(image: Image.Image, corruption: str, severity: int, id_: str) -> Image.Image:
    """The library's version. It draws from numpy's global generator, and impulse noise from one of its own."""
    seed = zlib.crc32(f"{id_}{corruption}{severity}".encode())
    np.random.seed(seed)
    options = {"seed": seed} if corruption == "impulse_noise" else {}
    return Image.fromarray(corrupt(np.asarray(image), severity, corruption, **options))


def pictures(rows: list[dataset.Row], function: Callable, corruption: str) -> list[tuple[str, Image.Image]]:
    """(label, picture) of every row at every severity."""
    images = [(row, decoded(row.image)) for row in rows]
    return [(row.label, function(image, corruption, s, row.id)) for s in SEVERITIES for row, image in images]


def accuracies(found: list[tuple[str, Image.Image]], directory: Path) -> np.ndarray:
    """The base model's accuracy on the pictures, by severity."""
    params = load_params()
    rows = []
    for number, (label, picture) in enumerate(found):
        file = io.BytesIO()
        picture.save(file, "PNG")
        rows.append(dataset.Row(str(number), file.getvalue(), label))
    dataset.write(directory / "corrupted.parquet", rows)
    split = str(directory / "corrupted.parquet")
    job = Evaluation(params.task, params.model, params.image, params.evaluation.batch_size, split, engine="posterior")
    job.run(directory, lambda event: None)
    import pandas as pd

    answers = pd.read_parquet(directory / "structured.parquet")
    return (answers["label"] == answers["predicted"]).to_numpy().reshape(len(SEVERITIES), -1).mean(axis=1)


def main() -> None:
    count = dataset.count(TEST)
    rows = dataset.Reader(TEST).rows(i * count // SAMPLES for i in range(SAMPLES))
    originals = np.stack([np.asarray(decoded(row.image), float) for row in rows])
    results = []
    for corruption in CORRUPTIONS:
        of_both = []
        for function in (corrupted, theirs):
            found = pictures(rows, function, corruption)
            changed = np.stack([np.asarray(picture, float) for _, picture in found])
            changes = np.abs(changed.reshape(len(SEVERITIES), *originals.shape) - originals).mean(axis=(1, 2, 3, 4))
            with tempfile.TemporaryDirectory() as folder:
                of_both.append((changes, accuracies(found, Path(folder))))
        for number, severity in enumerate(SEVERITIES):
            (change, accuracy), (their_change, their_accuracy) = ([part[number] for part in one] for one in of_both)
            row = {
                "corruption": corruption,
                "severity": severity,
                "change": round(float(change), 1),
                "their_change": round(float(their_change), 1),
                "accuracy": round(float(accuracy), 3),
                "their_accuracy": round(float(their_accuracy), 3),
            }
            results.append(row)
            print(*row.values())
    Path(__file__).with_suffix(".json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
