"""Estimates the GPU memory of a fine-tune without a GPU and without weights, from a model's config.json.

Counts the same forward pass as vlm.training.footprint does on the loaded model, but of the language model alone, and
over tensors that have a shape and no content. Imported only where an estimate is made, because it imports torch.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch._subclasses import FakeTensorMode
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForImageTextToText

from vlm.config import pins
from vlm.config.errors import InputError
from vlm.config.models import ModelConfig
from vlm.config.params import FinetuneParams, Params
from vlm.data import dataset
from vlm.evaluation import batching
from vlm.evaluation.trie import turn_tokens
from vlm.models import loading
from vlm.training import lora
from vlm.training.footprint import PATTERN_KEY, Footprint, autocast, count, trainable


def of_params(params: Params, data: str) -> Footprint:
    """The footprint of fine-tuning on the split `data`. Raises InputError if it or the model's files are missing."""
    dataset.count(data)  # asks for it before the Hub is asked for anything
    model = pins.resolved_model(params.model)
    folder = loading.require_files(model, weights=False)
    processor = loading.load_processor(model, params.image)
    prompt = max(batching.Loader(data, processor, params.task).lengths())
    answer = max(map(len, turn_tokens(processor, params.task)))
    return estimated(model, folder, params.finetune, prompt, answer)


def estimated(config: ModelConfig, folder: Path, knobs: FinetuneParams, prompt: int, answer: int) -> Footprint:
    """The footprint of training a model, given config.json in `folder` and the tokens of its longest prompt and answer.

    It leaves out what is saved in the projector, a few per cent. Raises InputError if the vision tower is trained too:
    only the loaded model can tell what that saves, because it depends on the pictures.
    """
    dtype = getattr(torch, config.dtype)
    whole = knobs.method == "full"
    attention = "eager" if config.attention == "eager" else "sdpa"  # other fused kernels save the same as sdpa
    with torch.device("meta"):
        base = AutoModelForImageTextToText.from_config(
            AutoConfig.from_pretrained(folder),
            dtype=torch.float32 if whole else dtype,
            attn_implementation=attention,
        )
        pattern = None
        if not whole:
            pattern = lora.pattern_for(base, knobs.lora.modules or config.lora_parts, config.lora_modules, PATTERN_KEY)
            lora.matched_modules(base, pattern, PATTERN_KEY)
        model = trainable(base, knobs, pattern)
    trained = {lora.part(name) for name, p in model.named_parameters() if p.requires_grad}
    if "vision" in trained:
        raise InputError(
            f"params.yaml: finetune.{'lr_scale' if whole else 'lora'}: what a trained vision tower needs is only known "
            "when the job runs"
        )
    decoder = base.get_decoder()
    # A GPU's tensors, because dropout and our LoRA layers save other things on a CPU.
    with FakeTensorMode(), _fused_attention(), autocast("cuda", dtype):
        _replace_tensors(model, lambda like: torch.empty(like.shape, dtype=like.dtype, device="cuda"))
        shape = (1, prompt + answer)
        mask = torch.ones(shape, dtype=torch.long, device="cuda")
        embedded = torch.empty(*shape, decoder.config.hidden_size, dtype=base.dtype, device="cuda")
        embedded.requires_grad_("projector" in trained or whole)
        saved = count(model, lambda: decoder(inputs_embeds=embedded, attention_mask=mask, use_cache=False))
        return Footprint.of(model, saved, answer, knobs.optimizer, dtype)


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Makes attention save what a fused kernel does: for fake tensors on a GPU torch would not choose one.

    All fused kernels save query, key, value, output, the sums of the softmax and the mask. The CPU's is used, because
    its operator takes a mask on any device.
    """

    def fused(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        mask = None if attn_mask is None else attn_mask.to(query.dtype)
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return kernel(query, key, value, dropout_p, is_causal, attn_mask=mask, scale=scale)[0]

    class Fused(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
            chosen = fused if function is functional.scaled_dot_product_attention else function
            return chosen(*args, **(kwargs or {}))

    with Fused():
        yield


def _replace_tensors(model: torch.nn.Module, made: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Replaces the model's parameters and buffers by `made` of them; what is shared stays shared."""
    parameters = {id(p): torch.nn.Parameter(made(p), p.requires_grad) for p in model.parameters()}
    buffers = {id(b): made(b) for b in model.buffers()}
    for module in model.modules():
        for tensors, found in ((module._parameters, parameters), (module._buffers, buffers)):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = found[id(tensor)]
