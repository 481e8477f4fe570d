"""Tiny vision-language models of several architectures, with random weights, built from their configs alone.

`build(name, folder)` saves one with its processor for `from_pretrained`. The weights are as large as trained ones, so
that the next token depends on the picture and the text. The same name always gives the same bytes. `loaded` loads one
with a loader of the pictures that `write_pictures` writes.
"""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    Lfm2VlConfig,
    Lfm2VlForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessor,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from models import pretrain_tiny
from vlm.config.models import ModelConfig
from vlm.config.params import ImageParams
from vlm.config.task import Task
from vlm.data import dataset
from vlm.evaluation import batching
from vlm.models import loading

QUESTION = Task(name="t", source={"folder": "photos"}, labels=["cat", "dog"], prompt={"user": "Which? {labels}"})
VOCABULARY = 640
TURN_TOKENS = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
TEXTS = [
    *"Audi BMW Bugatti Citroën Ferrari Fiat Ford Honda Hyundai Jaguar Kia Lamborghini Maserati Mazda".split(),
    *"Mercedes Mitsubishi Nissan Opel Peugeot Porsche Renault Skoda Subaru Suzuki Tesla Toyota Volvo".split(),
    *["Alfa Romeo", "Aston Martin", "General Motors", "Land Rover", "Rolls-Royce", "Volkswagen"],
    *['{"pred_class": "Land Rover"}', '{"pred_class": "Audi"}', '{"pred_class": "Volvo"}', '{"cat": true, "dog": 0}'],
    *["system\n", "user\n", "assistant\n", "You are a helpful multimodal assistant."],
    "Which car maker does the badge in the picture belong to? Answer with a JSON object, nothing else.",
    "Choose one of these classes and name it as it is written here: sitting, running, sleeping, using a laptop.",
    "The picture shows a cat or a dog. The quick brown fox jumps over the lazy dog, and both of them are happy.",
]

TEXT_MODEL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
VISION_MODEL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def lfm2_vl(folder: Path) -> None:
    """Convolution and attention layers, 4 to 16 image tokens between two markers, depending on the picture's shape."""
    tokenizer = pretrain_tiny.build_tokenizer(TEXTS, VOCABULARY)
    processor = pretrain_tiny.build_processor(tokenizer)
    processor.image_processor.min_image_tokens = 4
    layers = ["conv", "full_attention", "conv", "full_attention"]
    small = {"hidden_size": 32, "block_auto_adjust_ff_dim": False, "layer_types": layers}
    config = Lfm2VlConfig(
        text_config={"model_type": "lfm2", **TEXT_MODEL, **small, **_ids(tokenizer)},
        vision_config={
            "model_type": "siglip2_vision_model",
            **VISION_MODEL,
            "num_patches": 64,
            "vision_use_head": False,
        },
        image_token_id=tokenizer.image_token_id,
        projector_hidden_size=64,
    )
    _save(Lfm2VlForConditionalGeneration(config), processor, folder)


def qwen2_5_vl(folder: Path) -> None:
    """Rotary positions in three dimensions, 4 to 32 image tokens between two markers, depending on its size."""
    image, video, start, end = "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"
    tokenizer = _tokenizer(image, video, start, end)
    sizes = {"patch_size": 8, "size": {"shortest_edge": 4 * 16 * 16, "longest_edge": 32 * 16 * 16}}
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(**sizes),
        tokenizer,
        Qwen2VLVideoProcessor(**sizes),
        chat_template=_chat_template(start + image + end),
    )
    ids = tokenizer.convert_tokens_to_ids
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}  # half of a head's 16 dimensions
    config = Qwen2_5_VLConfig(
        text_config={"model_type": "qwen2_5_vl_text", **TEXT_MODEL, "rope_parameters": rope, **_ids(tokenizer)},
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 64,
            "patch_size": 8,
            "window_size": 32,
            "fullatt_block_indexes": [1],
        },
        image_token_id=ids(image),
        video_token_id=ids(video),
        vision_start_token_id=ids(start),
        vision_end_token_id=ids(end),
    )
    _save(Qwen2_5_VLForConditionalGeneration(config), processor, folder)


def idefics3(folder: Path) -> None:
    """16 image tokens between two markers for every picture, 16 more for every tile if splitting is on."""
    tiles = [f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)]
    markers = ["<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *tiles]
    tokenizer = _tokenizer("<image>", *markers, bos_token="<|begin_of_text|>")
    processor = Idefics3Processor(
        Idefics3ImageProcessor(
            do_image_splitting=False, size={"longest_edge": 128}, max_image_size={"longest_edge": 64}
        ),
        tokenizer,
        image_seq_len=16,
        chat_template=_chat_template("<image>"),
    )
    config = Idefics3Config(
        text_config={"model_type": "llama", **TEXT_MODEL, **_ids(tokenizer)},
        vision_config={**VISION_MODEL, "image_size": 64, "patch_size": 8},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    _save(Idefics3ForConditionalGeneration(config), processor, folder)


def llava(folder: Path) -> None:
    """16 image tokens and no markers for every picture: CLIP's patches from the second-to-last layer, without CLS."""
    tokenizer = _tokenizer("<image>", bos_token="<s>")
    processor = LlavaProcessor(
        LlavaImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}),
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_chat_template("<image>"),
    )
    config = LlavaConfig(
        text_config={"model_type": "llama", **TEXT_MODEL, **_ids(tokenizer)},
        vision_config={"model_type": "clip_vision_model", **VISION_MODEL, "image_size": 64, "patch_size": 16},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
        vision_feature_select_strategy="default",
        vision_feature_layer=-2,
    )
    _save(LlavaForConditionalGeneration(config), processor, folder)


def gemma3(folder: Path) -> None:
    """Sliding and full attention, bidirectional among a picture's 16 image tokens, and logits capped at 30."""
    names = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = _tokenizer(bos_token="<bos>", extra_special_tokens=names)
    processor = Gemma3Processor(
        Gemma3ImageProcessor(size={"height": 64, "width": 64}),
        tokenizer,
        image_seq_length=16,
        chat_template=_chat_template(tokenizer.boi_token),
    )
    attention = {
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "sliding_window": 512,
        "final_logit_softcapping": 30.0,
    }
    vision = {**VISION_MODEL, "image_size": 64, "patch_size": 8, "vision_use_head": False}
    config = Gemma3Config(
        text_config={"model_type": "gemma3_text", **TEXT_MODEL, **attention, **_ids(tokenizer)},
        vision_config={"model_type": "siglip_vision_model", **vision},
        mm_tokens_per_image=16,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )
    _save(Gemma3ForConditionalGeneration(config), processor, folder)


ARCHITECTURES: dict[str, Callable[[Path], None]] = {
    "lfm2_vl": lfm2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "idefics3": idefics3,
    "llava": llava,
    "gemma3": gemma3,
}


def build(name: str, folder: Path) -> Path:
    """Saves an architecture's model and processor in `folder`, and returns `folder`."""
    torch.manual_seed(7)
    ARCHITECTURES[name](folder)
    return folder


def write_pictures(path: Path, sizes: Sequence[tuple[int, int]]) -> str:
    """Writes a split of pictures of noise, width x height, all labelled "cat", and returns its path."""
    rng = np.random.default_rng(0)

    def png(size: tuple[int, int]) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (*size[::-1], 3), dtype=np.uint8)).save(buffer, "PNG")
        return buffer.getvalue()

    dataset.write(path, (dataset.Row(f"train-{i}", png(size), "cat") for i, size in enumerate(sizes)))
    return str(path)


def loaded(
    name: str, folder: Path, split: str, **image: object
) -> tuple[PreTrainedModel, ProcessorMixin, batching.Loader]:
    """An architecture, built in `folder`, its processor, and a loader that asks QUESTION about the pictures of `split`.

    `image` are values of params.yaml's block of that name.
    """
    config = ModelConfig(name=name, id=str(build(name, folder)), dtype="float32")
    model, processor = loading.load(config, ImageParams(**image))
    return model, processor, batching.Loader(split, processor, QUESTION)


def _tokenizer(
    *special: str, bos_token: str | None = None, extra_special_tokens: dict[str, str] | None = None
) -> PreTrainedTokenizerFast:
    """A byte-level BPE; `extra_special_tokens` are those that the processor asks the tokenizer for by name."""
    names = extra_special_tokens or {}
    tokens = [*TURN_TOKENS, *([bos_token] if bos_token else []), *special, *names.values()]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=tokens,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos_token,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        extra_special_tokens=names,
    )


def _chat_template(placeholder: str) -> str:
    return pretrain_tiny.CHAT_TEMPLATE.replace("<image>", placeholder)


def _ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int | None]:
    """The tokenizer's values that a text config needs."""
    return {"vocab_size": len(tokenizer), **_special_ids(tokenizer)}


def _special_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int | None]:
    return {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}


def _save(model: PreTrainedModel, processor: ProcessorMixin, folder: Path) -> None:
    _draw_weights(model)
    model.generation_config.update(**_special_ids(processor.tokenizer))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


@torch.no_grad()
def _draw_weights(model: PreTrainedModel) -> None:
    """Draws the weights. initializer_range does not suffice: some layers ignore it, and Gemma 3's projector starts at zero."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=1.5 * parameter[0].numel() ** -0.5)
        else:
            parameter.add_(0.1 * torch.randn_like(parameter))
        if name.endswith(("q_norm.weight", "q_layernorm.weight")):
            parameter.add_(3)  # else normalised queries attend to all alike, and the picture has no effect
