"""The GPU memory that a step of fine-tuning needs, and how many samples at once fit into it.

Most of it is what autograd saves between the forward and the backward pass. That is counted in a forward pass and not
looked up, so it holds for every architecture. vlm.training.estimate does it without a GPU and without weights.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlm.config.errors import InputError
from vlm.config.events import Emit, Log
from vlm.config.params import FinetuneParams, GradientCheckpointing
from vlm.evaluation import batching
from vlm.evaluation.trie import turn_tokens
from vlm.models import encoding, loading, memory
from vlm.training import full, lora

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, ProcessorMixin

    from vlm.training.job import FineTuning

PATTERN_KEY = "params.yaml: finetune.lora.modules"

# Assumptions, which no GPU has confirmed yet. Both are meant to be too large rather than too small.
_CONTEXT = 1.0e9  # bytes: CUDA's context, kernels, workspaces of cuBLAS and NCCL, a batch of pictures
_FRAGMENTATION = 0.1  # what torch's allocator reserves and cannot use, as a fraction of what it hands out

# Parameter, gradient and AdamW's two moments, each as large as the parameter: 16 bytes a parameter in float32. In 8
# bits a moment has a quarter of the size; the trainer keeps those of embeddings in 32.
_COPIES_OF_TRAINED = 4.0
_COPIES_IN_8_BITS = 2.5
# A logit in bfloat16 and float32, its log-probability in float32, and the gradients of the last two: 2 + 4 * 3 + 2.
_BYTES_PER_LOGIT = 16


@dataclass(frozen=True)
class MicroBatch:
    """How many samples go through the model at once, and whether with gradient checkpointing."""

    samples: int
    checkpointing: bool

    def __str__(self) -> str:
        plural = "" if self.samples == 1 else "s"
        return f"{self.samples} sample{plural} at once" + (" with gradient checkpointing" if self.checkpointing else "")


@dataclass(frozen=True)
class Saved:
    """The bytes that autograd saves in a forward pass."""

    total: int
    checkpointed: int  # with gradient checkpointing: the layers' inputs, and what is saved outside of layers
    layer: int  # in the layer that saves the most


@dataclass(frozen=True)
class Footprint:
    """What a step of fine-tuning keeps in a GPU's memory, in bytes."""

    weights: int  # frozen parameters and buffers, in their dtype
    trained: int  # trained parameters, their gradients, the optimizer's state, and copies in the dtype of autocast
    saved: Saved  # for one sample of the longest prompt and answer
    logits: int  # for the tokens of one answer

    @classmethod
    def of(
        cls,
        model: "PeftModel | PreTrainedModel",
        saved: Saved,
        answer: int,
        optimizer: str,
        dtype: "torch.dtype",
    ) -> "Footprint":
        """The footprint of a model that saves `saved` bytes for a sample whose answer has `answer` tokens.

        `optimizer` is params.yaml's, `dtype` that of matrix products. The logits are those of the loss on tokens; on
        labels they are fewer.
        """
        import torch

        parameters = list(model.parameters())
        fixed = [*(p for p in parameters if not p.requires_grad), *model.buffers()]
        trained = [p for p in parameters if p.requires_grad]
        copies = sum(p.numel() * dtype.itemsize for p in trained if p.dtype != dtype)
        tables = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
        whole = tables if optimizer == "adamw_8bit" else set(map(id, trained))  # in 32 bits
        states = sum(p.nbytes * (_COPIES_OF_TRAINED if id(p) in whole else _COPIES_IN_8_BITS) for p in trained)
        vocabulary = lora.inside(model).get_output_embeddings().weight.shape[0]
        return cls(
            weights=sum(tensor.nbytes for tensor in fixed),
            trained=round(states) + copies,
            saved=saved,
            logits=answer * vocabulary * _BYTES_PER_LOGIT,
        )

    def peak(self, batch: MicroBatch) -> float:
        """The memory that a step needs at its peak, in bytes.

        Beside what is saved, the backward pass needs a workspace: the gradients of a layer's activations, which take
        about as much as the activations themselves. With gradient checkpointing it first computes those again.
        """
        saved = self.saved.checkpointed + self.saved.layer if batch.checkpointing else self.saved.total
        workspace = self.saved.layer
        in_use = self.weights + self.trained + batch.samples * (saved + workspace + self.logits)
        return in_use * (1 + _FRAGMENTATION) + _CONTEXT


def split(
    job: "FineTuning",
    batch: int,
    gpu_memory: int | None,
    processes: int,
    emit: Emit,
    loaded: "tuple[PreTrainedModel, ProcessorMixin] | None" = None,
) -> MicroBatch:
    """How each of a job's `processes` splits its `batch` samples of a step, so that they fit into `gpu_memory` bytes.

    Without a GPU (None) nothing is chosen. Measures the job's model and says what is chosen; all processes choose the
    same. `loaded` is what `job.load()` has returned, if it was called already.

    Raises InputError if nothing fits, unless finetune.micro_batch says what to try.
    """
    import torch

    knobs = job.finetune
    choices = candidates(batch, knobs.micro_batch, knobs.gradient_checkpointing)
    if gpu_memory is None or len(choices) == 1:
        return choices[0]
    nothing = len(choices) + 1  # not even a forward pass
    need = None
    try:
        need = of_job(job, loaded)
    except RuntimeError as error:
        if not memory.is_out_of_memory(error):
            raise
    memory.free_memory()
    first = torch.tensor(first_fitting(choices, need, gpu_memory) if need else nothing, device=loading.device())
    if processes > 1:
        torch.distributed.all_reduce(first, torch.distributed.ReduceOp.MAX)
    if need is None or int(first) == nothing:
        raise InputError(
            "params.yaml: image.max_tokens: not even a forward pass of one sample fits into this GPU's memory; "
            "lower it, or use a larger GPU"
        )
    fits = int(first) < len(choices)
    chosen = choices[int(first)] if fits else choices[-1]
    takes = f"about {need.peak(chosen) / 1e9:.1f} of {gpu_memory / 1e9:.1f} GB"
    if not fits and not knobs.micro_batch:
        remedy = "" if chosen.checkpointing else ", set finetune.gradient_checkpointing: auto"
        raise InputError(
            f"params.yaml: image.max_tokens: {chosen} would take {takes}; lower it{remedy} or use a larger GPU; "
            "finetune.micro_batch: 1 tries it all the same"
        )
    if fits:
        emit(Log(f"{chosen}: {takes}"))
    else:
        emit(Log(f"warning: params.yaml: finetune.micro_batch: {chosen} would take {takes}, and may not fit"))
    return chosen


def gpu_memory() -> int | None:
    """The memory of this process's GPU in bytes, free or not; None without a GPU.

    All of it, so that results do not depend on what else runs on the GPU.
    """
    import torch

    if not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory


def candidates(batch: int, micro_batch: int | None, checkpointing: GradientCheckpointing) -> list[MicroBatch]:
    """The ways to split a process's `batch` samples, preferred ones first: the largest, without checkpointing.

    `micro_batch` and `checkpointing` are those of params.yaml's block `finetune`.
    """
    sizes = [micro_batch] if micro_batch else [n for n in range(batch, 0, -1) if batch % n == 0]
    modes = (False, True) if checkpointing == "auto" else (checkpointing,)
    return [MicroBatch(size, mode) for mode in modes for size in sizes]


def first_fitting(choices: Sequence[MicroBatch], need: Footprint, memory: float) -> int:
    """The index of the first choice that fits into `memory` bytes; len(choices) if none does."""
    return next((i for i, choice in enumerate(choices) if need.peak(choice) <= memory), len(choices))


def smaller(failed: MicroBatch, batch: int, checkpointing: GradientCheckpointing) -> MicroBatch | None:
    """What to try of a process's `batch` samples after `failed` has run out of memory; None if nothing is left."""
    if failed.samples > 1:
        half = failed.samples // 2
        return MicroBatch(max(n for n in range(1, half + 1) if batch % n == 0), failed.checkpointing)
    return MicroBatch(1, True) if checkpointing == "auto" and not failed.checkpointing else None


def of_job(job: "FineTuning", loaded: "tuple[PreTrainedModel, ProcessorMixin] | None" = None) -> Footprint:
    """The footprint of a job, measured on its model with the longest prompt of its training split.

    `loaded` is what `job.load()` has returned, if it was called already; the model's layers are left as they were.
    """
    import torch

    from vlm.training.trainer import Collator

    model, processor = loaded or job.load()
    job.lora_modules(model)  # refuses what PEFT would not
    load = batching.Loader(job.train, processor, job.task)
    lengths = load.lengths()
    (row,) = load.reader.rows([lengths.index(max(lengths))])
    answers = dict(zip(job.task.labels, turn_tokens(processor, job.task), strict=True))
    label = max(answers, key=lambda name: len(answers[name]))
    batch = Collator(processor, job.task)([{"image": batching.decoded(row.image), "label": label}])
    made = trainable(model, job.finetune, job.pattern(model))
    try:
        return measured(made, batch, getattr(torch, job.model.dtype), job.finetune.optimizer)
    finally:
        if made is not model:
            made.unload()
        model.eval()


def trainable(model: "PreTrainedModel", knobs: FinetuneParams, pattern: str | None) -> "PeftModel | PreTrainedModel":
    """The model as the trainer prepares it, in training mode: with LoRA layers, or with trainable weights (None)."""
    from peft import get_peft_model

    from vlm.training import fast_lora

    if pattern is None:
        full.unfreeze(model, knobs.lr_scale)
        return model.train()
    made = get_peft_model(model, lora.config(knobs.lora, pattern))
    fast_lora.make_fast(made)
    return made.train()


def measured(
    model: "PeftModel | PreTrainedModel", batch: Mapping[str, "torch.Tensor"], dtype: "torch.dtype", optimizer: str
) -> Footprint:
    """The footprint of training `model` on samples like that in `batch`, the collator's batch of one sample.

    Counts a forward pass under autocast to `dtype`, in which nothing is kept: it needs as much memory as inference.
    """
    inner = lora.inside(model)
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "edges")}
    inputs = encoding.to_device(inputs, inner)
    # Batches are padded. Without padding transformers drops the mask, and then another attention kernel runs.
    inputs["attention_mask"] = inputs["attention_mask"].clone()
    inputs["attention_mask"][:, 0] = 0
    with autocast(inner.device.type, dtype):
        saved = count(model, lambda: inner.base_model(**inputs, use_cache=False))
    return Footprint.of(model, saved, int((batch["labels"] != -100).sum()), optimizer, dtype)


def count(model: "torch.nn.Module", forward: Callable[[], object]) -> Saved:
    """The bytes that autograd saves of the pass of `model` that `forward` runs.

    Tensors that share a storage count once, parameters, buffers and copies of parameters in another dtype, which do not
    depend on the number of samples, not at all.
    """
    import torch
    from torch.multiprocessing.reductions import StorageWeakRef
    from transformers.modeling_layers import GradientCheckpointingLayer

    # Weak references, because the address of a storage that has been freed can be that of a later one.
    seen = {StorageWeakRef(tensor.untyped_storage()) for tensor in (*model.parameters(), *model.buffers())}
    total = 0

    def pack(tensor: torch.Tensor) -> None:
        nonlocal total
        storage = StorageWeakRef(tensor.untyped_storage())
        if storage not in seen:
            seen.add(storage)
            total += 0 if _is_copy_of_parameter(tensor) else tensor.untyped_storage().nbytes()

    inputs, before, inside = [], [], []

    def enter(layer: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        hidden = next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
        inputs.append(hidden.nbytes)
        before.append(total)

    def leave(*_: object) -> None:
        inside.append(total - before[-1])

    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    hooks = [layer.register_forward_pre_hook(enter, with_kwargs=True) for layer in layers]
    hooks += [layer.register_forward_hook(leave) for layer in layers]
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed):
            forward()
    finally:
        for hook in hooks:
            hook.remove()
    # A frozen layer saves nothing, and its input is not kept either.
    kept = sum(size for size, saved in zip(inputs, inside, strict=True) if saved)
    return Saved(total, total - sum(inside) + kept, max(inside, default=total))


def _is_copy_of_parameter(tensor: "torch.Tensor") -> bool:
    """Whether a tensor is a trained parameter in another dtype, as autocast makes them, possibly transposed."""
    step = tensor.grad_fn
    while step is not None and step.name() in ("ToCopyBackward0", "TBackward0", "TransposeBackward0", "ViewBackward0"):
        (step, _), *_ = step.next_functions
        if hasattr(step, "variable"):  # an AccumulateGrad, which belongs to a parameter
            return True
    return False


@contextmanager
def autocast(device: str, dtype: "torch.dtype") -> Iterator[None]:
    """torch.autocast, except that it also works for "cuda" on a machine without a GPU, where its tensors are fake."""
    import torch

    before = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    if dtype != torch.float32:
        torch.set_autocast_dtype(device, dtype)
        torch.set_autocast_enabled(device, True)
    try:
        yield
    finally:
        torch.set_autocast_enabled(device, before[0])
        torch.set_autocast_dtype(device, before[1])
        torch.clear_autocast_cache()
