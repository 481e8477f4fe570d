"""Compares raw generation in batches with one `generate` call per image: `python -m benchmarks.raw_generation`.

Both decode and preprocess the same test images and stop at the end of the turn. After a warm-up, the two cases take
turns. Prints a table and writes benchmarks/raw_generation.json. Needs `dvc repro prepare`.
"""

import json
import time
from pathlib import Path

from vlm.config.params import load_params
from vlm.evaluation import batching, decoding
from vlm.models import loading

DATA = "data/test.parquet"
IMAGES = 128
ROUNDS = 3


def main() -> None:
    params = load_params()
    loaded, processor = loading.load(params.model, params.image)
    decode = decoding.raw(loaded, processor, params.evaluation.max_new_tokens)
    load = batching.Loader(DATA, processor, params.task)

    def run(batch_size: int, images: int) -> tuple[float, list[str]]:
        started, texts = time.perf_counter(), []
        for start in range(0, images, batch_size):
            inputs = load(range(start, min(start + batch_size, images)))
            texts += decode(inputs.to(loaded.device, loaded.dtype)).texts
        return time.perf_counter() - started, texts

    sizes = {"one_generate_per_image": 1, "batched": params.evaluation.raw_batch_size}
    for size in sizes.values():
        run(size, min(size, IMAGES))
    seconds, texts = dict.fromkeys(sizes, 0.0), {}
    for _ in range(ROUNDS):
        for case, size in sizes.items():
            took, texts[case] = run(size, IMAGES)
            seconds[case] += took
    slow = seconds["one_generate_per_image"]
    rows = [
        {
            "case": case,
            "model": params.model.name,
            "images_per_second": round(ROUNDS * IMAGES / seconds[case], 1),
            "ratio": round(slow / seconds[case], 2),
            "same_texts": texts[case] == texts["batched"],
        }
        for case in sizes
    ]
    for row in rows:
        print(f"{row['case']:24} {row['images_per_second']:8} images/s {row['ratio']:6} x, same: {row['same_texts']}")
    Path("benchmarks/raw_generation.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
