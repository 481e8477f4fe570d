"""Measures how fast batches of pictures can be prepared for a GPU: `python -m benchmarks.feed`.

The pictures are JPEG files, the processor has the settings of LFM2-VL's real checkpoints (tiles of 512 pixels, 64 to
256 image tokens per tile) and tiny's tokenizer, and batches have 32 pictures, grouped by length as in an evaluation.
Each case runs in its own process on one or two cores, with one torch thread per process, and takes 2 to 30 seconds, so
that the start hardly counts. Of three runs of a case the fastest is reported, because other work on the host only
slows a run down; the cases that are only there for comparison run once. The cases:

- bare: decode, resize to the sizes that the processor chooses, and normalise; one picture at a time, nothing else. With
  two cores, half of the pictures in each of two processes: how much faster two cores are here at all.
- single_thread: batches through transformers' processor in one background thread, as it was.
- processor: transformers' processor in a worker process per core.
- ours: `vlm.evaluation.feed` with a worker process per core, as for a model on a GPU. vlm/models/patches.py gives the
  processor's results; subtracting the mean and dividing by the standard deviation is left to the GPU.
- job: the evaluation job (`Evaluation.answer`), fed as in `ours`, with a GPU that copies, normalises and answers a
  batch in no time.
- job_h100: the same with one that takes as long as an H100 might: 600 pictures of 512 x 512 a second, in proportion to
  the tiles (an estimate from its arithmetic throughput; nothing here ran on a GPU).

`cpu_ms_per_image` is the CPU time of all processes, system time included. Prints a table and writes
benchmarks/feed.json. About 25 minutes on two idle cores.
"""

import argparse
import io
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from types import SimpleNamespace

BATCH = 32
H100 = 600  # pictures of one tile per second
# Pictures, width, height, whether large ones are cut into tiles; of MIXED, every file has its own width and height
MIXED = "mixed, about 512 x 512"
SIZES = {
    "224 x 224": (16384, 224, 224, True),
    "512 x 512": (12288, 512, 512, True),
    MIXED: (12288, 512, 512, True),
    "1024 x 768": (6144, 1024, 768, False),
    "1024 x 768, tiles": (2048, 1024, 768, True),
}
CASES = (
    *(("bare", 1), ("bare", 2), ("single_thread", 1), ("processor", 1), ("processor", 2), ("ours", 1), ("ours", 2)),
    *(("job", 2), ("job_h100", 2)),
)
SHARES = {"bare": 4, "single_thread": 4, "processor": 4, "job_h100": 2}  # of the pictures: a quarter, a half
ONCE = ("single_thread", "processor")
ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)  # for child processes
    options = parser.parse_args()
    if options.measure:
        case, size, cores, split = options.measure
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(cores)])
        print(json.dumps(measure(case, size, int(cores), split)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size, (count, width, height, _) in SIZES.items():
            split = Path(folder) / f"{size}.parquet"
            write_pictures(split, count, width, height, mixed=size == MIXED)
            runs: dict[tuple[str, int], list[dict]] = {case: [] for case in CASES}
            for turn in range(ROUNDS):  # all cases in each, so that a slow phase of the host affects all of them
                for case, cores in CASES:
                    if turn and case in ONCE:
                        continue
                    command = [sys.executable, "-m", "benchmarks.feed", "--measure", case, size, str(cores), str(split)]
                    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
                    runs[case, cores].append(json.loads(done.stdout.splitlines()[-1]))
            for of_case in runs.values():
                row = max(of_case, key=lambda run: run["images_per_second"])
                print(
                    f"{row['size']:18} {row['case']:14} {row['cores']} cores {row['images_per_second']:8.4g} images/s "
                    f"{row['cpu_ms_per_image']:7.3g} ms of CPU time",
                    flush=True,
                )
                rows.append(row)
    Path("benchmarks/feed.json").write_text(json.dumps(rows, indent=2) + "\n")


def write_pictures(path: Path, count: int, width: int, height: int, mixed: bool) -> None:
    """A split of JPEG files with about as much detail as a photo, 64 different ones; `mixed`: of different sizes."""
    import numpy as np
    from PIL import Image

    from vlm.data import dataset

    rng = np.random.default_rng(0)
    files = []
    for _ in range(64):
        size = [int(side * rng.uniform(0.75, 1.25)) for side in (width, height)] if mixed else (width, height)
        coarse = Image.fromarray(rng.integers(0, 255, (height // 16, width // 16, 3), dtype=np.uint8))
        file = io.BytesIO()
        coarse.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    dataset.write(path, (dataset.Row(str(row), files[row % len(files)], "Audi") for row in range(count)))


def measure(case: str, size: str, cores: int, split: str) -> dict:
    """One case's row."""
    import torch

    from vlm.config.params import load_params
    from vlm.models import loading

    torch.set_num_threads(1)
    params = load_params()
    processor = loading.load_processor(params.model, params.image)
    count, width, height, tiles = SIZES[size]
    processor.image_processor = image_processor(tiles)
    count //= SHARES.get(case, 1)
    runs = {
        "bare": bare,
        "single_thread": single_thread,
        "processor": by_processor,
        "ours": ours,
        "job": job,
        "job_h100": job,
    }
    run = runs[case]
    run(split, processor, params, range(BATCH), cores, 0.0)  # warm up
    tiles_per_picture = len(processor.image_processor([picture(width, height)], return_tensors="pt")["pixel_values"])
    sleep = tiles_per_picture / H100 if case == "job_h100" else 0.0
    cpu, began = cpu_seconds(), time.perf_counter()
    run(split, processor, params, range(count), cores, sleep)
    seconds, cpu = time.perf_counter() - began, cpu_seconds() - cpu
    return {
        "case": case,
        "size": size,
        "cores": cores,
        "images_per_second": float(f"{count / seconds:.4g}"),
        "cpu_ms_per_image": float(f"{1000 * cpu / count:.3g}"),
    }


def image_processor(tiles: bool):
    from transformers.models.lfm2_vl.image_processing_lfm2_vl import Lfm2VlImageProcessor

    return Lfm2VlImageProcessor(do_image_splitting=tiles)  # the other settings are those of the real checkpoints


def picture(width: int, height: int):
    from PIL import Image

    return Image.new("RGB", (width, height))


def cpu_seconds() -> float:
    """CPU time of this process and of all that it has started and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


@cache
def sizes(image_processor, width: int, height: int) -> list[list[int]]:
    """The height and width of a picture when it is whole and, if it is cut, of all its tiles together."""
    found = image_processor([picture(width, height)], return_row_col_info=True)
    (rows, columns), (whole,) = (found["image_rows"][0], found["image_cols"][0]), found["image_sizes"]
    tile = image_processor.tile_size
    return [list(map(int, whole))] + [[int(rows) * tile, int(columns) * tile]] * (rows * columns > 1)


def bare(split: str, processor, params, rows: range, cores: int, sleep: float) -> None:
    from torchvision.transforms.v2 import functional

    from vlm.data import dataset
    from vlm.evaluation.batching import decoded

    if cores > 1:
        with multiprocessing.get_context("fork").Pool(cores) as pool:
            of_each = [(split, processor, params, rows[start::cores], 1, sleep) for start in range(cores)]
            pool.starmap(bare, of_each)
            pool.close()
            pool.join()  # so that their CPU time counts
        return
    for row in dataset.Reader(split).rows(rows):
        image = decoded(row.image)
        pixels = functional.pil_to_tensor(image)
        for size in sizes(processor.image_processor, *image.size):
            resized = functional.resize(pixels, size, antialias=True)
            functional.normalize(resized.float() / 255, [0.5] * 3, [0.5] * 3)


def single_thread(split: str, processor, params, rows: range, cores: int, sleep: float) -> None:
    by_processor(split, processor, params, rows, 0, sleep)


def by_processor(split: str, processor, params, rows: range, cores: int, sleep: float) -> None:
    from unittest.mock import patch

    from vlm.models import patches

    with patch.object(patches, "of", lambda processor: None):
        consume(split, processor, params, rows, cores)


def ours(split: str, processor, params, rows: range, cores: int, sleep: float) -> None:
    consume(split, processor, params, rows, cores)


def consume(split: str, processor, params, rows: range, workers: int) -> None:
    import torch

    from vlm.evaluation import batching
    from vlm.evaluation.feed import feed

    model = SimpleNamespace(device=torch.device("cpu"), dtype=torch.bfloat16)
    load = batching.Loader(split, processor, params.task, model.dtype)
    batches = batching.plan(load.lengths(rows), BATCH)  # as in an evaluation
    for _ in feed(load, batches, model, workers=workers):
        pass


def job(split: str, processor, params, rows: range, cores: int, sleep: float) -> None:
    """The runner of the evaluation job with a model that takes `sleep` seconds for a picture."""
    from functools import partial
    from unittest.mock import patch

    import torch

    from vlm.evaluation import feed, runner
    from vlm.evaluation.record import Answers, Record
    from vlm.models import encoding

    def answer(inputs: dict) -> Answers:
        count = len(inputs["input_ids"])
        time.sleep(sleep * count)
        return Answers(["Audi"] * count, [[1.0]] * count)

    config = SimpleNamespace(image_token_id=processor.image_token_id)
    model = SimpleNamespace(device=torch.device("cpu"), dtype=torch.bfloat16, config=config)
    with_workers = patch.object(feed, "feed", partial(feed.feed, workers=cores))  # a model on a CPU has none
    on_gpu = patch.object(encoding, "to_device", lambda inputs, model: inputs)
    with tempfile.TemporaryDirectory() as folder, with_workers, on_gpu:
        made = runner.BatchRunner(model, processor, params.task, lambda event: None, (0, 1))
        made.run(split, BATCH, answer, Record(Path(folder) / "record.jsonl"), rows=rows)


if __name__ == "__main__":
    main()
