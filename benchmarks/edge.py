"""Compares types of exported weights: `python -m benchmarks.edge`.

Two parts, both with one thread of this machine's CPU, which is not a phone:

- Quality: the fine-tuned model of the last `dvc repro` in each pair of types (text model + vision tower and projector),
  on all test pictures: labels that change against PyTorch (predictions/final_eval), accuracy, and milliseconds.
  All of them answer a picture before the next one, so that a slow phase of the machine affects them alike.
- Size and speed at LFM2-VL-450M's dimensions, with random weights, which affect neither: five pictures of 256 x 256.

Prints both tables and writes benchmarks/edge.json. Needs `dvc repro final_eval`. About five minutes.
"""

import json
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from vlm.config.params import Params, load_params
from vlm.data import dataset, predictions
from vlm.edge import gguf_files, merging
from vlm.edge.classifier import Classifier
from vlm.edge.llama import Llama
from vlm.evaluation import TEST, VALIDATION, batching
from vlm.evaluation.intervals import wilson
from vlm.models import loading

PAIRS = [("F16", "F16"), ("Q8_0", "F16"), ("Q8_0", "Q8_0"), ("Q4_K_M", "Q8_0"), ("Q4_0", "Q8_0"), ("Q4_0", "Q4_0")]
LARGE = [("F16", "F16"), ("Q8_0", "Q8_0"), ("Q4_K_M", "Q8_0"), ("Q4_0", "Q8_0")]
PICTURES = 5
ADAPTER = "models/adapter"


def main() -> None:
    params = load_params()
    with tempfile.TemporaryDirectory() as folder:
        found = {"quality": quality(params, Path(folder)), "450M dimensions": large(params, Path(folder))}
    for name, rows in found.items():
        print(f"\n{name}\n{pd.DataFrame(rows).to_string(index=False)}")
    Path("benchmarks/edge.json").write_text(json.dumps(found, indent=2) + "\n")


def quality(params: Params, folder: Path) -> list[dict]:
    merged, _ = merging.merge(params, ADAPTER, folder / "merged", merging.samples(VALIDATION))
    processor = loading.load_processor(merged, params.image)
    final = predictions.read("final_eval")
    reader = dataset.Reader(TEST)
    images = [batching.decoded(row.image) for row in reader.rows(range(len(final)))]
    folders = [written(Path(merged.id), folder / "+".join(pair), pair, params, processor) for pair in PAIRS]
    answers, seconds = asked(folders, images)
    rows = []
    for pair, own, times, place in zip(PAIRS, answers, seconds, folders, strict=True):
        labels = np.array(params.task.labels)[own.argmax(1)]
        right = int((labels == final["label"]).sum())
        low, high = wilson(right, len(final))
        rows.append(
            {
                "types": "+".join(pair),
                "megabytes": megabytes(place),
                "accuracy": round(right / len(final), 4),
                "low": round(low, 4),
                "high": round(high, 4),
                "changed": int((labels != final["predicted"]).sum()),
                "largest_change": round(float(np.abs(own - np.stack(final["probabilities"])).max()), 4),
                "milliseconds": round(1000 * statistics.median(times), 1),
            }
        )
    return rows


def large(params: Params, folder: Path) -> list[dict]:
    from benchmarks.models import large_450m, with_vocabulary

    tiny, tiny_processor = loading.load(params.model, params.image)
    _, wide = with_vocabulary(tiny, tiny_processor, 65_536)
    model, processor = large_450m(wide)
    model.half().save_pretrained(folder / "450M")
    processor.save_pretrained(folder / "450M")
    del model
    folders = [written(folder / "450M", folder / f"450M-{'+'.join(pair)}", pair, params, processor) for pair in LARGE]
    images = [Image.effect_noise((256, 256), 64).convert("RGB") for _ in range(PICTURES)]
    _, seconds = asked(folders, images)
    return [
        {"types": "+".join(pair), "megabytes": megabytes(place), "milliseconds": round(1000 * statistics.median(times))}
        for pair, place, times in zip(LARGE, folders, seconds, strict=True)
    ]


def written(model: Path, folder: Path, pair: tuple[str, str], params: Params, processor) -> Path:
    """The folder, with the files of a classifier."""
    folder.mkdir()
    gguf_files.write(model, folder, *pair)
    Classifier.of(params, processor, "0" * 64).with_files(folder, pair).save(folder)
    return folder


def asked(folders: list[Path], images: list[Image.Image]) -> tuple[list[np.ndarray], list[list[float]]]:
    """For each classifier (images, labels), and the seconds that each picture took."""
    answers, seconds = [[] for _ in folders], [[] for _ in folders]
    with ExitStack() as stack:
        loaded = [stack.enter_context(Llama(folder, threads=1)) for folder in folders]
        for llama in loaded:
            llama.posterior(images[0])  # warms up
        for image in images:
            for llama, own, times in zip(loaded, answers, seconds, strict=True):
                started = time.perf_counter()
                own.append(llama.posterior(image))
                times.append(time.perf_counter() - started)
    return [np.stack(own) for own in answers], seconds


def megabytes(folder: Path) -> float:
    return round(sum(file.stat().st_size for file in folder.glob("*.gguf")) / 1e6, 2)


if __name__ == "__main__":
    main()
