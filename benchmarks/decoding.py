"""Compares ways to ask "which of these labels?": `python -m benchmarks.decoding`.

Measures images per second, including image decoding and preprocessing, and the time as a multiple of the plain prefill
of the same batches (the model's forward pass over the same prompts, last position's logits only). The cases:

- prefill: the forward pass alone, without an answer; picture first, and picture last (`prompt.image`).
- outlines_per_call: one Outlines call per image, `outlines.from_transformers(...)(chat, output_type)`, which compiles
  the grammar each time, as in the tutorial that this pipeline grew out of.
- outlines_kept: one `outlines.Generator` for all images, one image at a time.
- outlines_batched: this pipeline's `engine: outlines`, in its batches.
- posterior: this pipeline's `engine: posterior`. posterior_shared_prefix: the same with the picture last.
- posterior_1000_labels: the task's 31 labels and 969 more that are not in the prompt.
- posterior_196_listed, posterior_1000_listed: as many labels, all of them in the prompt, in small batches because the
  prompts are long; posterior_196_unlisted, posterior_1000_unlisted: none of them in the prompt. Beside the prefill of
  their own prompts, preprocessed beforehand.

outlines_batched also reports the fraction of images on which it agrees with the posterior.

Models: tiny with its own vocabulary, tiny with one of 65,536 tokens (as LFM2's; random new rows), and a model of
LFM2-VL-450M's dimensions with random weights. Every case runs once to warm up; then the cases take turns. Prints a
table and writes benchmarks/decoding.json. Needs `dvc repro prepare`. About ten minutes.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.models import large_450m, with_vocabulary
from vlm.config.params import load_params
from vlm.config.task import Task, load_task
from vlm.evaluation import batching, decoding, feed
from vlm.evaluation.posterior import Posterior
from vlm.models import encoding, loading

DATA = "data/test.parquet"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    params = load_params()
    tiny, processor = loading.load(params.model, params.image)
    wide, wide_processor = with_vocabulary(tiny, processor, 65_536)
    large, large_processor = large_450m(wide_processor)
    rows = []
    rows += measure("tiny", tiny, processor, params.task, 32, 128, rounds, per_call=16)
    rows += many_labels("tiny", tiny, processor, params.task, rounds)
    rows += measure("tiny", wide, wide_processor, params.task, 32, 128, rounds, per_call=2)
    rows += measure("450M dimensions", large, large_processor, params.task, 4, 4, rounds, per_call=0)
    Path("benchmarks/decoding.json").write_text(json.dumps(rows, indent=2) + "\n")


def measure(
    name: str, vlm, processor, task: Task, batch_size: int, images: int, rounds: int, per_call: int
) -> list[dict]:
    """One row per case; see `cases_of` for `per_call`."""
    cases = cases_of(vlm, processor, task, batch_size, images, per_call)
    seconds = dict.fromkeys(cases, 0.0)
    for run, _ in cases.values():
        run()  # a warm-up
    for _ in range(rounds):
        for case, (run, _) in cases.items():
            began = time.perf_counter()
            run()
            seconds[case] += time.perf_counter() - began
    vocabulary = vlm.get_input_embeddings().num_embeddings
    rows = []
    for case, (_, count) in cases.items():
        per_image = seconds[case] / rounds / count
        of_prefill = per_image / (seconds["prefill"] / rounds / images)
        row = {
            "case": case,
            "model": name,
            "vocabulary": vocabulary,
            "images_per_second": float(f"{1 / per_image:.3g}"),
            "ratio_to_prefill": float(f"{of_prefill:.3g}"),
        }
        print(
            f"{name:16} {vocabulary:6} {case:24} {row['images_per_second']:8} images/s {of_prefill:8.2f} x prefill",
            flush=True,
        )
        rows.append(row)
        if case == "outlines_batched":
            row["agreement_with_posterior"] = agreement(vlm, processor, task, batch_size, images)
            print(f"the same label as posterior: {row['agreement_with_posterior']:.1%} of {images} images", flush=True)
    return rows


def cases_of(
    vlm, processor, task: Task, batch_size: int, images: int, per_call: int
) -> dict[str, tuple[Callable[[], object], int]]:
    """Maps each case to a function that runs it and its number of images.

    `per_call`: images for outlines_per_call; 0 leaves out Outlines and the 1,000 labels.
    """
    last = task.model_copy(update={"prompt": task.prompt.model_copy(update={"image": "last"})})
    many = task.model_copy(update={"labels": (*task.labels, *more_labels(1000 - len(task.labels)))})
    many = many.model_copy(update={"prompt": many.prompt.model_copy(update={"user": filled(task)})})
    cases: dict[str, tuple[Callable[[], object], int]] = {}

    def batched(asked: Task, decode: Callable[[dict], object]) -> Callable[[], None]:
        load = batching.Loader(DATA, processor, asked)

        def run() -> None:
            batches = batching.plan([0] * images, batch_size)  # all badges have one size
            for _, inputs in feed.feed(load, batches, vlm):
                decode(encoding.to_device(inputs, vlm))

        return run

    cases["prefill"] = batched(task, partial(prefill, vlm)), images
    cases["prefill_picture_last"] = batched(last, partial(prefill, vlm)), images
    cases["posterior"] = batched(task, Posterior(vlm, processor, task)), images
    cases["posterior_shared_prefix"] = batched(last, Posterior(vlm, processor, last)), images
    if per_call:
        cases["posterior_1000_labels"] = batched(many, Posterior(vlm, processor, many)), images
        cases["outlines_batched"] = batched(task, decoding.outlines(vlm, processor, task)), images
        cases["outlines_kept"] = one_by_one(vlm, processor, task, per_call * 2, kept=True), per_call * 2
        cases["outlines_per_call"] = one_by_one(vlm, processor, task, per_call, kept=False), per_call
    return cases


def many_labels(name: str, vlm, processor, task: Task, rounds: int) -> list[dict]:
    """One row for each number of labels, in the prompt and not; the task gives the pictures and the listing prompt."""
    labels = {196: load_task("car_model").labels, 1000: tuple(more_labels(1000))}
    listing, short = task.prompt.user, "What is in this picture?"
    cases = [(196, listing, 4), (1000, listing, 2), (196, short, 32), (1000, short, 32)]
    rows = []
    for count, user, batch in cases:
        prompt = task.prompt.model_copy(update={"user": user})
        asked = task.model_copy(update={"labels": labels[count], "prompt": prompt})
        inputs = batching.Loader(DATA, processor, asked)(range(batch)).to(vlm.device, vlm.dtype)
        posterior = Posterior(vlm, processor, asked)
        seconds = {"prefill": 0.0, "posterior": 0.0}
        for turn in range(1 + rounds):  # the first is a warm-up
            for case, run in (("prefill", partial(prefill, vlm)), ("posterior", posterior)):
                began = time.perf_counter()
                run(inputs)
                seconds[case] += (time.perf_counter() - began) * (turn > 0)
        row = {
            "case": f"posterior_{count}_{'listed' if user == listing else 'unlisted'}",
            "model": name,
            "vocabulary": vlm.get_input_embeddings().num_embeddings,
            "prompt_tokens": inputs["input_ids"].shape[1],
            "images_per_second": float(f"{batch * rounds / seconds['posterior']:.3g}"),
            "ratio_to_prefill": float(f"{seconds['posterior'] / seconds['prefill']:.3g}"),
        }
        print(*row.values(), flush=True)
        rows.append(row)
    return rows


@torch.inference_mode()
def prefill(vlm, inputs: dict) -> None:
    vlm(**inputs, use_cache=False, logits_to_keep=1)


def agreement(vlm, processor, task: Task, batch_size: int, images: int) -> float:
    """The fraction of images on which Outlines' greedy answer is the most probable label."""
    load, same = batching.Loader(DATA, processor, task), 0
    greedy = decoding.outlines(vlm, processor, task)
    probable = decoding.most_probable(Posterior(vlm, processor, task), task)
    for batch in batching.plan([0] * images, batch_size):
        inputs = load(batch).to(vlm.device, vlm.dtype)
        pairs = zip(greedy(inputs).texts, probable(inputs).texts, strict=True)
        same += sum(task.parse(one) == task.parse(other) for one, other in pairs)
    return same / images


def one_by_one(vlm, processor, task: Task, images: int, kept: bool) -> Callable[[], None]:
    """Outlines as in its documentation, one image at a time."""
    import outlines
    from outlines.inputs import Chat, Image
    from outlines.types import Regex

    grammar = Regex(decoding.answers_regex(task))
    wrapped = outlines.from_transformers(vlm, processor)
    generator = outlines.Generator(wrapped, grammar) if kept else None
    reader = batching.Loader(DATA, processor, task)

    def run() -> None:
        for row in range(images):
            picture = batching.decoded(reader.reader.rows([row])[0].image)
            picture.format = "PNG"  # Outlines needs a format
            messages = task.conversation()
            for part in messages[-1]["content"]:
                if part["type"] == "image":
                    part["image"] = Image(picture)
            chat = Chat(messages)
            with torch.compiler.set_stance("force_eager"):
                if generator is not None:
                    generator(chat, max_new_tokens=40)
                else:
                    outlines.from_transformers(vlm, processor)(chat, grammar, max_new_tokens=40)

    return run


def more_labels(count: int) -> list[str]:
    """Names with common prefixes, like 1,000 real labels."""
    firsts = "North South East West New Old Great Little Upper Lower Fort Saint Port Mount Lake Cape Glen Kings".split()
    seconds = "bury ford ham ton wick field bridge hill dale brook mouth stead worth ley mere combe gate haven".split()
    thirds = ["", " Castle", " Cross", " Green", " Park"]
    return [f"{a} {b.title()}{c}" for a in firsts for b in seconds for c in thirds][:count]


def filled(task: Task) -> str:
    return task.prompt.user.replace("{labels}", "\n".join(task.labels))


if __name__ == "__main__":
    main()
