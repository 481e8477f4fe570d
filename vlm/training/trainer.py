"""TRL's trainer as this pipeline uses it. Imported only by a running job, because it imports torch and TRL."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from datasets import Dataset
from peft import PeftModel
from transformers import EarlyStoppingCallback, PrinterCallback, set_seed
from trl import SFTConfig, SFTTrainer

from vlm.config import cores
from vlm.config.errors import InputError
from vlm.config.events import Emit, Log
from vlm.config.task import Task
from vlm.data import dataset
from vlm.evaluation import batching, feed
from vlm.evaluation.trie import Trie, answer_tokens, turn_tokens
from vlm.models import encoding
from vlm.training import fast_lora, full, lora, rates
from vlm.training.features import Features
from vlm.training.losses import AnswerLoss, edges_at
from vlm.training.reporting import Reporter
from vlm.training.sampling import AugmentedRows, EpochSampler

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

    from vlm.training.job import FineTuning

_MOST_WORKERS = 8  # a step of training takes longer than a batch of an evaluation


class Trainer(SFTTrainer):
    """SFTTrainer with our loss, a learning rate for each part, our sampler and validation passes.

    `build` sets the attributes `loss`, `answer_tokens`, `train_sampler` and `lr_scale`; its caller sets `validate`.
    """

    loss: AnswerLoss
    answer_tokens: float  # supervised tokens of an average validation sample
    train_sampler: EpochSampler
    lr_scale: Any  # learning rate factors by part of the model
    validate: Callable[[], dict[str, float]]

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        """The part of a step's loss that these samples contribute; `num_items_in_batch` is the whole step's."""
        loss, output = self.loss(model, inputs, num_items_in_batch)
        if num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # because gradients are averaged over the processes
        return (loss, output) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list[dict], device: torch.device) -> torch.Tensor | None:
        """The supervised tokens and the samples of an optimizer step, in all micro-batches and processes: (2,).

        The trainer itself counts tokens alone.
        """
        if not batch_samples:
            return None
        tokens = sum((batch["labels"] != -100).sum() for batch in batch_samples).to(device)
        samples = torch.full_like(tokens, sum(len(batch["labels"]) for batch in batch_samples))
        return self.accelerator.gather(torch.stack([tokens, samples])).view(-1, 2).sum(0)

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor, None, None]:
        """A validation batch's loss, so scaled that the mean over samples does not depend on how they are batched."""
        inputs = self._prepare_inputs(inputs)
        samples = len(inputs["labels"])
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, _ = self.loss(model, inputs, (samples * self.answer_tokens, samples))
        return loss, None, None

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        return self.train_sampler

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(model)
        part_of = {id(p): lora.part(name) for name, p in self.model.named_parameters()}
        groups = []
        for group in optimizer.param_groups:
            for part in lora.PARTS:
                chosen = [p for p in group["params"] if part_of[id(p)] == part]
                if chosen:
                    rate = group["lr"] * getattr(self.lr_scale, part)
                    groups.append({**group, "params": chosen, "lr": rate})
        optimizer.param_groups = groups
        return optimizer

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        """Restores the weights. A whole model's are loaded as a model, because in files they can have other names."""
        if isinstance(self.model, PeftModel):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            saved = type(self.model).from_pretrained(resume_from_checkpoint, dtype=self.model.dtype)
            self.model.load_state_dict(saved.state_dict())

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        self._found = {f"eval_{name}": value for name, value in self.validate().items()}
        return super().evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "eval_loss" in logs:
            logs.update(self._found)  # in place, because the best checkpoint is chosen by these
        super().log(logs, start_time)


class Collator:
    """Makes batches that are padded on both sides, so that all prompts end and all answers begin at the same position.

    Prompts have the same tokens as in evaluation (vlm.models.encoding.encode), answers those of vlm.evaluation.trie.
    `labels` are the supervised tokens and -100 elsewhere; `edges`, of the same shape, are the edges of the trie that
    they take, and -1 where no label is decided (see vlm.training.losses).
    """

    def __init__(self, processor: "ProcessorMixin", task: Task) -> None:
        self._processor = processor
        self._task = task
        answers, trie = turn_tokens(processor, task), Trie.of(answer_tokens(processor, task))
        self._answers = dict(zip(task.labels, answers, strict=True))
        self._edges = {label: edges_at(trie, i, len(answer)) for i, (label, answer) in enumerate(self._answers.items())}

    def answer_length(self, label: str) -> int:
        """The number of a label's supervised tokens."""
        return len(self._answers[label])

    def __call__(self, rows: Sequence[dict]) -> dict[str, torch.Tensor]:
        if "inputs" in rows[0]:
            batch = rows[0]["collate"]([row["inputs"] for row in rows])
        else:
            pictures = [row["image"].convert("RGB") for row in rows]
            batch = encoding.encode(self._processor, self._task, pictures)
        answers = [torch.tensor(self._answers[row["label"]]) for row in rows]
        padding = self._processor.tokenizer.pad_token_id
        ids = torch.nn.utils.rnn.pad_sequence(answers, batch_first=True, padding_value=padding)
        lengths = torch.tensor([len(answer) for answer in answers])
        real = torch.arange(ids.shape[1]) < lengths[:, None]
        prompts = batch["input_ids"]
        for name in ("token_type_ids", "mm_token_type_ids"):
            if name in batch:
                batch[name] = torch.cat([batch[name], torch.zeros_like(ids)], dim=1)
        batch["input_ids"] = torch.cat([prompts, ids], dim=1)
        batch["attention_mask"] = torch.cat([batch["attention_mask"], real.to(batch["attention_mask"].dtype)], dim=1)
        batch["labels"] = torch.cat([torch.full_like(prompts, -100), ids.masked_fill(~real, -100)], dim=1)
        edges = [torch.tensor(self._edges[row["label"]]) for row in rows]
        edges = torch.nn.utils.rnn.pad_sequence(edges, batch_first=True, padding_value=-1)
        batch["edges"] = torch.cat([torch.full_like(prompts, -1), edges], dim=1)
        return dict(batch)


class FeatureRows:
    """A split's rows by item (see vlm.training.sampling), with cached image features in place of pictures."""

    def __init__(self, kept: Features, labels: Sequence[str]) -> None:
        self.kept = kept
        self._labels = labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, item: int) -> dict:
        row = item % len(self)
        return {"inputs": self.kept.row(row), "label": self._labels[row], "collate": self.kept.collate}


def build(
    job: "FineTuning",
    model: "PreTrainedModel",
    processor: "ProcessorMixin",
    directory: Path,
    emit: Emit,
    pattern: str | None,
    micro_batch: int,
    kept: dict[str, Features] | None = None,
) -> Trainer:
    """Adds LoRA layers to the model, or makes its own weights trainable; returns a trainer that lacks only `validate`.

    Checkpoints are written to `directory`. `pattern` selects the modules for LoRA, without which (None) the whole model
    is trained; `micro_batch` is the number of
    samples in one forward pass of this process; `kept` are the splits' image features, if the model takes them in place
    of pictures.
    """
    set_seed(job.seed)  # LoRA's initial weights are drawn before the trainer sets the seed
    params, scratch = job.finetune, directory.parent / "scratch"
    rate = rates.peak(params, job.model, model.config.get_text_config().hidden_size)
    if params.learning_rate == "auto" or (params.learning_rate is None and pattern is None):
        emit(Log(rates.described(params, rate)))
    if pattern is None:
        full.unfreeze(model, params.lr_scale)
    loss = AnswerLoss(params.loss, model, processor, job.task)
    callbacks = [Reporter(emit, loss.largest)]
    if params.patience is not None:
        callbacks.append(EarlyStoppingCallback(params.patience))
    trainer = Trainer(
        model=model,
        args=_arguments(job, directory, micro_batch, rate),
        data_collator=Collator(processor, job.task),
        train_dataset=_samples(job.train, scratch),
        eval_dataset=_samples(job.validation, scratch),
        processing_class=processor,
        peft_config=None if pattern is None else lora.config(params.lora, pattern),
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    if params.gradient_checkpointing is True:
        if not trainer.model.supports_gradient_checkpointing:
            raise InputError(
                f"params.yaml: finetune.gradient_checkpointing: {job.model.id!r} does not support it; use false, and "
                "a lower image.max_tokens if memory is short"
            )
        trainer.model.activation_checkpointing_enable({"use_reentrant": False})
        # It gives all embeddings gradients, which only reentrant checkpointing needs: gradients for the frozen tower.
        trainer.model.disable_input_require_grads()
    fast_lora.make_fast(trainer.model)
    # At the model itself, because the trainer, and with several GPUs torch, move all inputs to the GPU.
    lora.inside(trainer.model).register_forward_pre_hook(_sizes_on_cpu, with_kwargs=True)
    (_, labels), (_, held_out) = dataset.ids_and_labels(job.train), dataset.ids_and_labels(job.validation)
    trainer.loss = loss
    trainer.answer_tokens = sum(map(trainer.data_collator.answer_length, held_out)) / len(held_out)
    lengths = (kept[job.train] if kept else batching.Loader(job.train, processor, job.task)).lengths()
    if kept:
        trainer.train_dataset = FeatureRows(kept[job.train], labels)
        trainer.eval_dataset = FeatureRows(kept[job.validation], held_out)
    else:
        trainer.train_dataset = AugmentedRows(trainer.train_dataset, params.augment, job.task.flip, job.seed)
    # With augmentation these lengths are approximate, because crops differ from the pictures in size.
    trainer.train_sampler = EpochSampler(labels, params.balance, job.seed, params.batch_size, lengths)
    if not trainer.args.use_cpu:  # if the model runs on the CPU, workers would only take its cores
        longest = trainer.data_collator([trainer.train_dataset[lengths.index(max(lengths))]])
        size = micro_batch * sum(value.nbytes for value in longest.values())
        use_workers(trainer.args, feed.most_workers(min(_MOST_WORKERS, cores.available()), size, emit))
    trainer.lr_scale = params.lr_scale
    return trainer


def use_workers(args: SFTConfig, count: int) -> None:
    """Makes the data loader use `count` worker processes, each of which prepares one batch ahead."""
    if count:  # torch refuses the others without workers
        args.dataloader_num_workers = count
        args.dataloader_prefetch_factor = 1
        args.dataloader_multiprocessing_context = feed.start_method()


def _sizes_on_cpu(model: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Moves what LFM2-VL reads as numbers to the CPU, once; see vlm.models.encoding.to_device."""
    if "spatial_shapes" in kwargs:
        kwargs["spatial_shapes"] = kwargs["spatial_shapes"].cpu()
    return args, kwargs


def processes() -> PartialState:
    """accelerate's state: the index of this process and the number of processes."""
    return PartialState(cpu=not torch.cuda.is_available())


def _arguments(job: "FineTuning", directory: Path, micro_batch: int, learning_rate: float) -> SFTConfig:
    params, on_gpu = job.finetune, torch.cuda.is_available()
    return SFTConfig(
        output_dir=str(directory),
        num_train_epochs=params.epochs,
        per_device_train_batch_size=micro_batch,
        per_device_eval_batch_size=micro_batch,
        gradient_accumulation_steps=params.batch_size // (micro_batch * processes().num_processes),
        learning_rate=learning_rate,
        optim={"adamw": "adamw_torch", "adamw_8bit": "adamw_bnb_8bit"}[params.optimizer],
        lr_scheduler_type="cosine",
        warmup_steps=0.05,  # a fraction of all steps
        seed=job.seed,
        data_seed=job.seed,
        bf16=job.model.dtype == "bfloat16",
        fp16=job.model.dtype == "float16",
        activation_checkpointing=False,  # see `build`
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        max_length=None,  # truncating a prompt would cut off image tokens
        completion_only_loss=True,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=params.eval_steps,
        save_strategy="steps",
        save_steps=params.eval_steps,
        save_total_limit=2,  # the latest and the best
        metric_for_best_model={"accuracy": "selection", "eval_loss": "loss"}[params.select_by],
        greater_is_better=params.select_by == "accuracy",
        load_best_model_at_end=False,
        report_to=[],
        disable_tqdm=True,
        log_level="error",
    )


def _samples(data: str, directory: Path) -> Dataset:
    """The split's pictures and labels, decoded on access; a copy of them is cached in `directory`."""
    return Dataset.from_parquet(data, cache_dir=str(directory / "datasets"))
