"""Pretrains models/tiny, the embedded LFM2-VL, on a CPU: `python -m models.pretrain_tiny`. Users need not run it again.

tiny stands in for a real vision-language model on machines that cannot download one. It is therefore taught what such a
model already knows, and nothing of the pipeline's task: brand icons, brand names, and free-form conversations about
them. It never sees the task's prompt, answer format or label spelling, and its conversations are rarely about car
makers.

Step 1 trains the vision tower with a linear head to tell brands apart, because a tiny model trained end to end from
scratch learns the form of the answers and ignores the picture. Step 2 trains everything on questions and answers.

This reproduces models/tiny byte for byte on one kind of machine (a test compares short runs). Step 1: 30,000
photos of 83 brands, running accuracy on them 51 % after 900 steps, 70 % after 1,600, 90 % after 2,900, 99 % after
4,900; 32 minutes on two cores shared with other work. Step 2: 500 steps, loss 0.26, 6 minutes. In total, including
rendering, 41 minutes. `--tower` keeps the result of step 1, so that step 2 can be tried with other conversations
(docs/log.md). The conversations are in models/tiny_conversations.py.
"""

import argparse
import io
import math
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import simple_icons_pack
import torch
from PIL import Image
from torch import nn

from models import tiny_conversations
from vlm.config.task import load_task
from vlm.sources import badges

OTHER_BRANDS = """
    3m airbnb airbus arduino atlassian bitcoin blender bluetooth bosch burgerking cloudflare dell discord docker dropbox
    ebay facebook figma github gitlab grafana hp ikea instagram intel kubernetes lenovo lg mastercard mcdonalds mozilla
    netflix nike nvidia peugeot pinterest puma python reddit renault samsung seat shell shopify skoda spotify starbucks
    tiktok uber visa wordpress youtube
""".split()
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
    {{- "<|im_start|>" ~ message.role ~ "\\n" -}}
    {%- if message.content is string -%}
        {{- message.content -}}
    {%- else -%}
        {%- for part in message.content -%}
            {%- if part.type == "image" -%}{{- "<image>" -}}{%- else -%}{{- part.text -}}{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- "<|im_end|>\\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|im_start|>assistant\\n" -}}{%- endif -%}
"""


@dataclass(frozen=True)
class Settings:
    seed: int = 7
    # Step 1: the vision tower
    tower_images: int = 30_000
    tower_severity: float = 0.6  # the photos' severity is uniform between 0 and this
    tower_maker_share: float = 0.5
    tower_steps: int = 5_000
    tower_easy_steps: int = 1_500  # up to this step, harder and harder photos are added
    tower_batch: int = 64
    # Step 2: the whole model
    talk_images: int = 12_000
    talk_severity: float = 0.3
    talk_maker_share: float = 0.15
    talk_steps: int = 500
    talk_batch: int = 32
    learning_rate: float = 1e-3
    tower_scale: float = 0.2  # learning rate factor for the vision tower in step 2


def build_tokenizer(texts: list[str], vocabulary: int = 1280):
    """A byte-level BPE with LFM2-VL's special tokens (same names; pad 0, bos 1, end of turn 7)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|fim_pre|>", "<|fim_mid|>", "<|fim_suf|>"]
    special += ["<|im_start|>", "<|im_end|>", "<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"]
    special += [f"<|img_row_{row}_col_{col}|>" for row in range(1, 11) for col in range(1, 11)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|startoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        extra_special_tokens={
            "image_token": "<image>",
            "image_start_token": "<|image_start|>",
            "image_end_token": "<|image_end|>",
            "image_thumbnail_token": "<|img_thumbnail|>",
        },
    )


def build_processor(tokenizer):
    """LFM2-VL's processor for small pictures: at most 16 image tokens, which is a badge of 128 x 128 pixels."""
    from transformers import Lfm2VlProcessor
    from transformers.models.lfm2_vl.image_processing_lfm2_vl import Lfm2VlImageProcessor

    image_processor = Lfm2VlImageProcessor(
        do_image_splitting=False, min_image_tokens=8, max_image_tokens=16, max_num_patches=64, tile_size=128
    )
    return Lfm2VlProcessor(image_processor=image_processor, tokenizer=tokenizer, chat_template=CHAT_TEMPLATE)


def build_model(tokenizer, seed: int):
    """An untrained LFM2-VL of 2.6 M parameters: 4 layers of 128 in the tower, 6 of 128 in the language model."""
    from transformers import Lfm2VlConfig, Lfm2VlForConditionalGeneration

    ids = tokenizer.convert_tokens_to_ids
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    config = Lfm2VlConfig(
        text_config={
            "model_type": "lfm2",
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 384,
            "block_auto_adjust_ff_dim": False,
            "num_hidden_layers": 6,
            "layer_types": ["conv", "conv", "full_attention"] * 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32_768,
            **special,
        },
        vision_config={
            "model_type": "siglip2_vision_model",
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "patch_size": 16,
            "num_patches": 64,
            "vision_use_head": False,
        },
        image_token_id=ids("<image>"),
        projector_hidden_size=256,
        downsample_factor=2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = Lfm2VlForConditionalGeneration(config)
    model.generation_config.update(**special)
    return model


def render_pictures(names: list[str], makers: int, count: int, severity: float, share: float, seed: int, stream: int):
    """uint8 pictures (count, 128, 128, 3) and labels (count,), easiest first.

    `share` is the fraction of pictures whose brand is one of the first `makers` names.
    """
    pictures = np.empty((count, badges.SIZE, badges.SIZE, 3), np.uint8)
    labels = np.empty(count, np.int64)
    job = partial(_picture, names, makers, severity / count, share, seed, stream)
    with ProcessPoolExecutor() as pool:
        for i, (label, picture) in enumerate(pool.map(job, range(count), chunksize=64)):
            labels[i], pictures[i] = label, picture
    return pictures, labels


def _picture(names, makers, severity_step, share, seed, stream, index):
    rng = badges.rng_for(seed, stream, index)
    label = int(rng.integers(makers) if rng.random() < share else rng.integers(makers, len(names)))
    jpeg = badges.render(names[label], rng, severity_step * index)
    return label, np.asarray(Image.open(io.BytesIO(jpeg)))


def patches(pictures: np.ndarray) -> dict[str, torch.Tensor]:
    """Lfm2VlImageProcessor's output for pictures that need no resizing: 64 patches of 16 x 16 x 3, scaled to -1..1."""
    n, side = len(pictures), badges.SIZE // 16
    pixels = torch.from_numpy(pictures).reshape(n, side, 16, side, 16, 3).permute(0, 1, 3, 2, 4, 5)
    return {
        "pixel_values": pixels.reshape(n, side * side, -1).float() / 127.5 - 1,
        "spatial_shapes": torch.full((n, 2), side),
        "pixel_attention_mask": torch.ones(n, side * side, dtype=torch.int32),
    }


def schedule(step: int, steps: int, warm_up: int = 100) -> float:
    """The learning rate factor: linear warm-up, then linear decay to zero."""
    return min((step + 1) / warm_up, (steps - step) / (steps - warm_up))


def train_tower(config, pictures: np.ndarray, labels: np.ndarray, classes: int, settings: Settings) -> nn.Module:
    """Step 1: brand classification from the mean of the tower's last hidden states; `pictures` come easiest first."""
    from transformers import AutoModel

    torch.manual_seed(settings.seed)  # here, so that step 2's vocabulary and layers do not affect step 1
    tower = AutoModel.from_config(config)
    head = nn.Linear(config.hidden_size, classes)
    parameters = [*tower.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, settings.learning_rate, weight_decay=0.05)
    rng = np.random.default_rng(settings.seed)
    start, right, seen = time.time(), 0, 0
    for step in range(settings.tower_steps):
        optimizer.param_groups[0]["lr"] = settings.learning_rate * schedule(step, settings.tower_steps)
        fraction = min(1.0, 0.2 + 0.8 * step / settings.tower_easy_steps)
        chosen = rng.integers(0, int(len(pictures) * fraction), settings.tower_batch)
        logits = head(tower(**patches(pictures[chosen])).last_hidden_state.mean(1))
        target = torch.from_numpy(labels[chosen])
        loss = nn.functional.cross_entropy(logits, target, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        right, seen = right + int((logits.argmax(-1) == target).sum()), seen + len(chosen)
        if (step + 1) % 100 == 0:
            print(f"tower {step + 1:5d}: loss {loss:.3f}, accuracy {right / seen:.3f}, {time.time() - start:.0f} s")
            right = seen = 0
    return tower


def tower_weights(config, names: list[str], makers: int, settings: Settings, kept: Path | None) -> dict:
    """The tower's weights after step 1: those in the file `kept` if it exists; otherwise trained, and written there."""
    if kept and kept.exists():
        return torch.load(kept, weights_only=True)
    pictures, labels = render_pictures(
        names,
        makers,
        settings.tower_images,
        settings.tower_severity,
        settings.tower_maker_share,
        settings.seed,
        stream=0,
    )
    weights = train_tower(config, pictures, labels, len(names), settings).state_dict()
    if kept:
        torch.save(weights, kept)
    return weights


def train_talk(model, processor, pictures, labels, titles: list[str], settings: Settings) -> None:
    """Step 2: questions and answers, with the loss on the answers."""
    tokenizer = processor.tokenizer
    picture_text = "<|image_start|>" + "<image>" * 16 + "<|image_end|>"
    tower = list(model.model.vision_tower.parameters())
    rest = [p for p in model.parameters() if all(p is not q for q in tower)]
    groups = [{"params": rest, "scale": 1.0}, {"params": tower, "scale": settings.tower_scale}]
    optimizer = torch.optim.AdamW(groups, settings.learning_rate, weight_decay=0.05)
    rng = np.random.default_rng(settings.seed + 1)
    start = time.time()
    for step in range(settings.talk_steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * group["scale"] * schedule(step, settings.talk_steps)
        chosen = rng.integers(0, len(pictures), settings.talk_batch)
        prompts, answers = [], []
        for label in labels[chosen]:
            messages, answer = tiny_conversations.sample(titles[label], titles, rng)
            prompt = tokenizer.apply_chat_template(
                messages, chat_template=CHAT_TEMPLATE, add_generation_prompt=True, tokenize=False
            )
            prompts.append(tokenizer(prompt.replace("<image>", picture_text), add_special_tokens=False)["input_ids"])
            answers.append(tokenizer(f"{answer}<|im_end|>\n", add_special_tokens=False)["input_ids"])
        length = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
        ids = torch.zeros(len(chosen), length, dtype=torch.long)
        mask, target = torch.zeros_like(ids), torch.full_like(ids, -100)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            ids[row, -len(prompt) - len(answer) :] = torch.tensor(prompt + answer)
            mask[row, -len(prompt) - len(answer) :] = 1
            target[row, -len(answer) :] = torch.tensor(answer)
        loss = model(input_ids=ids, attention_mask=mask, labels=target, **patches(pictures[chosen])).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 50 == 0:
            print(f"talk {step + 1:5d}: loss {loss:.3f}, {time.time() - start:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("models/tiny"))
    parser.add_argument("--tower", type=Path, help="file for the tower of step 1; if it exists, step 1 is skipped")
    for name, value in vars(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    arguments = vars(parser.parse_args())
    output, kept_tower = arguments.pop("output"), arguments.pop("tower")
    settings = Settings(**arguments)

    makers = list(load_task("car_badges").source.badges.icons.values())
    names = [*makers, *OTHER_BRANDS]
    titles = [simple_icons_pack.get_icon(name).title for name in names]
    rng = np.random.default_rng(settings.seed)
    talk = [tiny_conversations.sample(titles[rng.integers(len(titles))], titles, rng) for _ in range(4_000)]
    tokenizer = build_tokenizer([*tiny_conversations.texts(talk), *titles])
    processor = build_processor(tokenizer)
    model = build_model(tokenizer, settings.seed)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {len(names)} brands")

    model.model.vision_tower.load_state_dict(
        tower_weights(model.config.vision_config, names, len(makers), settings, kept_tower)
    )
    pictures, labels = render_pictures(
        names,
        len(makers),
        settings.talk_images,
        settings.talk_severity,
        settings.talk_maker_share,
        settings.seed,
        stream=1,
    )
    train_talk(model, processor, pictures, labels, titles, settings)

    shutil.rmtree(output, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(output)
    processor.save_pretrained(output)
    size = sum(file.stat().st_size for file in output.iterdir())
    print(f"{output}: {math.ceil(size / 1e6)} MB")


if __name__ == "__main__":
    main()
