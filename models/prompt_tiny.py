"""Continues from models/tiny with the loss on prompts, too: `python -m models.prompt_tiny FOLDER`.

For benchmarks/recipe.py. A real vision-language model was pretrained on running text, so a prompt in English is hardly
news to it. tiny was pretrained on answers only, and a fine-tune with the loss on the prompt spends itself on memorising
that. This writes a tiny to which the prompt of car_badges, its list of labels included, is no news.

The badges of car_badges are not taught: all pictures show other brands. The conversations are

- half: system prompt, question and list of labels of car_badges, word for word, up to where the answer begins. There is
  no answer, because none of the labels is what the picture shows.
- a quarter: the same words with a list of other brands in random order, and the right one as the answer, bare;
- a quarter: those of pretraining (models/tiny_conversations.py), about other brands.

As in benchmarks/reference.py, every token but the padding counts, the image's placeholders included. The vision tower
is frozen.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simple_icons_pack
import torch
from PIL import Image
from torch import nn

from models import pretrain_tiny, tiny_conversations
from vlm.config.task import Task, load_task


@dataclass(frozen=True)
class Settings:
    seed: int = 11
    images: int = 4_000
    severity: float = 0.3  # the photos' severity is uniform between 0 and this, as in pretraining
    steps: int = 300
    batch: int = 16
    learning_rate: float = 5e-4


def conversation(task: Task, brand: str, others: list[str], rng: np.random.Generator) -> tuple[list[dict], str | None]:
    """A conversation about a picture of `brand`, which is one of `others`, and the answer; None for the first kind."""
    kind = rng.integers(4)
    if kind < 2:
        return task.conversation(), None
    if kind == 2:
        among = [name for name in rng.permutation(others).tolist() if name != brand][: len(task.labels) - 1]
        listed = rng.permutation([brand, *among]).tolist()
        return task.model_copy(update={"labels": listed}).conversation(), brand
    return tiny_conversations.sample(brand, others, rng)


def text(processor, messages: list[dict], answer: str | None) -> str:
    """The chat as text: up to where the answer begins, or with the answer and the end of its turn."""
    if answer is None:
        return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    turn = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
    return processor.apply_chat_template([*messages, turn], tokenize=False)


def batches(processor, task: Task, settings: Settings) -> Iterator[dict[str, torch.Tensor]]:
    """The training batches, with `labels` for all tokens but the padding."""
    makers = list(task.source.badges.icons.values())
    names = [*makers, *pretrain_tiny.OTHER_BRANDS]
    titles = [simple_icons_pack.get_icon(name).title for name in names]
    pictures, labels = pretrain_tiny.render_pictures(
        names, len(makers), settings.images, settings.severity, share=0.0, seed=settings.seed, stream=0
    )
    rng = np.random.default_rng(settings.seed)
    for _ in range(settings.steps):
        chosen = rng.integers(0, len(pictures), settings.batch)
        talk = [conversation(task, titles[labels[i]], titles[len(makers) :], rng) for i in chosen]
        batch = processor(
            images=[[Image.fromarray(pictures[i])] for i in chosen],
            text=[text(processor, *pair) for pair in talk],
            padding=True,
            add_special_tokens=False,
            return_tensors="pt",
        )
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        yield dict(batch)


def train(output: Path, settings: Settings) -> None:
    """Writes the model and its processor to `output`."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    task = load_task("car_badges")
    processor = AutoProcessor.from_pretrained("models/tiny")
    model = AutoModelForImageTextToText.from_pretrained("models/tiny", dtype=torch.float32)
    model.model.vision_tower.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, settings.learning_rate, weight_decay=0.05)
    torch.manual_seed(settings.seed)
    model.train()
    start = time.time()
    for step, batch in enumerate(batches(processor, task, settings)):
        warm_up = min(20, settings.steps // 2)
        rate = settings.learning_rate * pretrain_tiny.schedule(step, settings.steps, warm_up)
        optimizer.param_groups[0]["lr"] = rate
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if step == 0 or (step + 1) % 25 == 0:
            print(f"prompts {step + 1:4d}: loss {loss:.3f} nats a token, {time.time() - start:.0f} s", flush=True)
    model.to(torch.bfloat16).save_pretrained(output)
    processor.save_pretrained(output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, metavar="FOLDER")
    for name, value in vars(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    arguments = vars(parser.parse_args())
    output = arguments.pop("output")
    train(output, Settings(**arguments))


if __name__ == "__main__":
    main()
