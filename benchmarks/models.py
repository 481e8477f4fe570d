"""Models for timings: real dimensions, random weights, because the weights do not affect the time."""

import copy
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin


def with_vocabulary(
    model: "PreTrainedModel", processor: "ProcessorMixin", size: int
) -> "tuple[PreTrainedModel, ProcessorMixin]":
    """The model and its processor with a byte-level BPE of `size` tokens, trained on the Python files installed here.

    The special tokens keep their ids; new rows of the embedding are random.
    """
    from models.pretrain_tiny import build_processor, build_tokenizer

    tokenizer = build_tokenizer(_texts(), size)
    assert len(tokenizer) == size, f"the text yields {len(tokenizer)} tokens, not {size}"
    wide = copy.deepcopy(model)
    torch.manual_seed(0)
    wide.resize_token_embeddings(size)
    made = build_processor(tokenizer)
    made.tokenizer.padding_side = "left"
    made.tokenizer.chat_template = made.chat_template  # Outlines looks for it here
    made.image_processor = processor.image_processor
    return wide, made


def _texts() -> list[str]:
    """Text that is already installed: the source of torch and transformers, at most 100 MB."""
    from pathlib import Path

    import transformers

    files = [file for package in (torch, transformers) for file in sorted(Path(package.__file__).parent.rglob("*.py"))]
    texts, left = [], 100_000_000
    for file in files:
        text = file.read_text(encoding="utf-8", errors="ignore")
        texts.append(text)
        left -= len(text)
        if left < 0:
            break
    return texts


def large_450m(processor: "ProcessorMixin") -> "tuple[PreTrainedModel, ProcessorMixin]":
    """A model of LFM2-VL-450M's dimensions (its model card's; random weights, float32), for 256 x 256 pixels.

    `processor` has 65,536 tokens; the picture gets 64 image tokens, the real processor's minimum.
    """
    from transformers import Lfm2VlConfig, Lfm2VlForConditionalGeneration, Lfm2VlProcessor
    from transformers.models.lfm2_vl.image_processing_lfm2_vl import Lfm2VlImageProcessor

    attention = {2, 5, 8, 10, 12, 14}
    tokenizer = processor.tokenizer
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    config = Lfm2VlConfig(
        text_config={
            "model_type": "lfm2",
            "vocab_size": len(tokenizer),
            "hidden_size": 1024,
            "intermediate_size": 6656,  # adjusted to 4,608 by block_auto_adjust_ff_dim, as in the published config
            "num_hidden_layers": 16,
            "layer_types": ["full_attention" if i in attention else "conv" for i in range(16)],
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            **special,
        },
        vision_config={
            "model_type": "siglip2_vision_model",
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "patch_size": 16,
            "vision_use_head": False,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        projector_hidden_size=2560,
        downsample_factor=2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = Lfm2VlForConditionalGeneration(config).eval()
    image_processor = Lfm2VlImageProcessor(do_image_splitting=False, min_image_tokens=64, max_image_tokens=256)
    made = Lfm2VlProcessor(image_processor=image_processor, tokenizer=tokenizer, chat_template=processor.chat_template)
    return model, made
