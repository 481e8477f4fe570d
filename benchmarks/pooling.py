"""Compares features for the probe: `python -m benchmarks.pooling`.

A linear probe, as in vlm/probing/heads.py, on features of `tiny`: the vision tower's last hidden state or the
projector's output, pooled over a picture's patches by mean, maximum or both.

Data: the task in data/ (needs `dvc repro prepare`), and scikit-learn's 1,797 scanned digits, cut into 997 for training,
200 for validation and 600 for test. Prints a table and writes benchmarks/pooling.json. Which features are the best is
decided on validation; test is shown to see what that was worth. About a minute.
"""

import io
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits

from vlm.config.params import load_params
from vlm.data import dataset
from vlm.evaluation import batching
from vlm.models import encoding, loading
from vlm.probing import heads
from vlm.probing.heads import Samples

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SPLITS = ("train", "validation", "test")
PARTS = {"train": slice(997), "validation": slice(997, 1197), "test": slice(1197, None)}  # of the digits
FEATURES = [
    "tower mean", "tower max", "tower mean + tower max",
    "projector mean", "projector max", "projector mean + projector max",
]  # fmt: skip


def main() -> None:
    params = load_params()
    model, processor = loading.load(params.model, params.image)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_digits(Path(folder))
        for data, place in ((params.task.name, Path("data")), ("digits", Path(folder))):
            files = {split: str(place / f"{split}.parquet") for split in SPLITS}
            pooled = {
                split: pool(model, batching.Loader(file, processor, params.task)) for split, file in files.items()
            }
            truth = {split: dataset.ids_and_labels(file)[1] for split, file in files.items()}
            rows += [{"data": data, "features": name} | probe(pooled, truth, name) for name in FEATURES]
    print("data  features  dimensions  log loss and accuracy on validation  on test")
    for row in rows:
        print("  ".join(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    Path("benchmarks/pooling.json").write_text(json.dumps(rows, indent=2) + "\n")


def write_digits(folder: Path) -> None:
    """Writes the digits as splits, enlarged from 8 x 8 to 64 x 64 pixels, in a random order."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))

    def row(number: int) -> dataset.Row:
        pixels = (digits.images[number] * 15.9).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC).convert("RGB").save(file, "PNG")
        return dataset.Row(str(number), file.getvalue(), str(digits.target[number]))

    for split, part in PARTS.items():
        dataset.write(folder / f"{split}.parquet", map(row, order[part].tolist()))


def pool(model: "PreTrainedModel", load: batching.Loader) -> dict[str, np.ndarray]:
    """Every kind of features, (samples, dimensions), of all pictures of a split. They are one tile each."""
    pooled: dict[str, list[torch.Tensor]] = {}
    count = len(load.lengths())
    for start in range(0, count, 32):
        inputs = load(range(start, min(start + 32, count)))
        with torch.inference_mode():
            output = model.get_image_features(**encoding.picture_inputs(inputs))
        masks = inputs["pixel_attention_mask"].bool()
        tower = [state[mask] for state, mask in zip(output.last_hidden_state, masks, strict=True)]
        for name, pictures in (("tower", tower), ("projector", output.pooler_output)):
            for patches in pictures:
                pooled.setdefault(f"{name} mean", []).append(patches.mean(0))
                pooled.setdefault(f"{name} max", []).append(patches.amax(0))
    return {name: torch.stack(values).numpy() for name, values in pooled.items()}


def probe(pooled: dict[str, dict[str, np.ndarray]], truth: dict[str, list[str]], name: str) -> dict[str, float | int]:
    """Log loss and accuracy of a linear probe on the features `name`."""
    labels = sorted(set(truth["train"]))
    samples = {}
    for split in SPLITS:
        features = np.concatenate([pooled[split][part] for part in name.split(" + ")], axis=1)
        samples[split] = Samples(features, np.array([labels.index(label) for label in truth[split]]), len(labels))
    chosen = heads.best_inverse_penalty(samples["train"], samples["validation"], lambda: None)
    classify = heads.linear(samples["train"], chosen)
    found: dict[str, float | int] = {"dimensions": samples["test"].features.shape[1]}
    for split in ("validation", "test"):
        probabilities = classify(samples[split].features)
        found[f"{split}_log_loss"] = round(samples[split].log_loss(probabilities), 3)
        found[f"{split}_accuracy"] = round(float((probabilities.argmax(1) == samples[split].truth).mean()), 3)
    return found


if __name__ == "__main__":
    main()
