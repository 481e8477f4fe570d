"""Small LFM2-VL models with random weights and the structure of the published ones, and what llama.cpp makes of them."""

import base64
import io
import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Regex, pre_tokenizers
from transformers import Lfm2VlConfig, Lfm2VlForConditionalGeneration

from models import pretrain_tiny

# How LFM2's tokenizer splits text, as its tokenizer.json has it.
LFM2_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEXTS = [
    "It's the car maker's badge, and they'll pick 1 of 12 classes: Alfa Romeo, Land Rover, Rolls-Royce, Volkswagen.",
    'Answer with JSON: {"pred_class": "Land Rover"}\n\nNothing else...\n\tWhich of the 333 cars, 4444 pictures, 55555?',
    "You are a helpful multimodal assistant. The picture shows a cat; the CAT'S name isn't known.",
]
# Layers, those with attention, and heads of the text model; layers and heads of the vision tower; whether the feed-
# forward width is derived from the config's. The widths are 8 a head, so that the models are small.
SHAPES = {
    "450M": (16, {2, 5, 8, 10, 12, 14}, 16, 12, 12, True),
    "1.6B": (16, {2, 5, 8, 10, 12, 14}, 32, 27, 16, True),
    "3B": (30, {2, 6, 9, 12, 15, 18, 21, 25}, 32, 27, 16, False),
}


def build(folder: Path, size: str = "450M", lfm2_tokenizer: bool = True, **changes: Any) -> Path:
    """Saves a model of a published size's structure and its processor in `folder`, and returns `folder`.

    `changes` are values of Lfm2VlConfig; `text` and `vision` among them are values of its two parts.
    """
    layers, attention, heads, tower_layers, tower_heads, adjusted = SHAPES[size]
    tokenizer = pretrain_tiny.build_tokenizer(TEXTS, 600)
    if lfm2_tokenizer:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(LFM2_PATTERN), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.backend_tokenizer.model.ignore_merges = True
    text = {
        "model_type": "lfm2",
        "vocab_size": len(tokenizer) + 5,  # the published models have rows without a token too
        "hidden_size": 8 * heads,
        "intermediate_size": 384,
        "block_auto_adjust_ff_dim": adjusted,  # makes 256 of 384
        "num_hidden_layers": layers,
        "layer_types": ["full_attention" if layer in attention else "conv" for layer in range(layers)],
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "max_position_embeddings": 4096,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "model_type": "siglip2_vision_model",
        "hidden_size": 8 * tower_heads,
        "intermediate_size": 16 * tower_heads + (16 if size != "450M" else 0),  # 4,304 does not divide by 32 either
        "num_hidden_layers": tower_layers,
        "num_attention_heads": tower_heads,
        "num_patches": 64,
        "vision_use_head": False,
    }
    text |= changes.pop("text", {})
    vision |= changes.pop("vision", {})
    values = {"image_token_id": tokenizer.image_token_id, "projector_hidden_size": 96, **changes}
    torch.manual_seed(3)
    model = Lfm2VlForConditionalGeneration(Lfm2VlConfig(text_config=text, vision_config=vision, **values))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:  # large enough for the picture and every word to count
                parameter.normal_(std=1.5 * parameter[0].numel() ** -0.5)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
            if "embed" in name:
                parameter.mul_(0.5)
    model.to(torch.bfloat16).save_pretrained(folder)
    pretrain_tiny.build_processor(tokenizer).save_pretrained(folder)
    return folder


class Server:
    """llama.cpp with the files of a folder."""

    def __init__(self, server: Any) -> None:
        self._address = server.listening_address

    def tokens(self, text: str) -> list[int]:
        return self._ask("/tokenize", {"content": text, "add_special": False, "parse_special": True})["tokens"]

    def next_token(self, before: str, image: Image.Image, after: str, count: int) -> dict[int, float]:
        """The log probabilities of the `count` most likely tokens after a prompt with a picture."""
        file = io.BytesIO()
        image.save(file, "PNG")
        marker = self._ask("/props")["media_marker"]
        prompt = {
            "prompt_string": before + marker + after,
            "multimodal_data": [base64.b64encode(file.getvalue()).decode()],
        }
        answer = self.complete(
            # An end of the answer would have no probabilities; the grammar does not change those that are returned.
            {"prompt": prompt, "n_predict": 1, "n_probs": count, "grammar": "root ::= [a-z]+", "cache_prompt": False},
        )
        return {token["id"]: token["logprob"] for token in answer["completion_probabilities"][0]["top_logprobs"]}

    def complete(self, request: dict) -> dict:
        return self._ask("/completion", request)

    def _ask(self, path: str, body: dict | None = None) -> dict:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._address + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)


@contextmanager
def served(folder: Path) -> Iterator[Server]:
    """llama.cpp in this process, on one thread, with model.gguf and mmproj.gguf of `folder`."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.mmproj.path = str(folder / "model.gguf"), str(folder / "mmproj.gguf")
    params.n_ctx, params.n_parallel, params.n_gpu_layers, params.cache_ram_mib = 1024, 1, 0, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.image_min_tokens, params.image_max_tokens = 8, 16
    # As exact as it gets, for comparisons with PyTorch
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.verbosity, params.ui, params.warmup = -1, False, False
    server = xllamacpp.Server(params)
    try:
        llama = Server(server)
        # xllamacpp's loop over completions starts in a thread of its own. A server that is ended before that hangs.
        llama.complete({"prompt": "a", "n_predict": 1})
        yield llama
    finally:
        del server
