"""The fine-tuning job: trains a LoRA adapter, and resumes where a killed run stopped."""

import json
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vlm.config.errors import InputError
from vlm.config.events import Emit, Log
from vlm.config.models import ModelConfig
from vlm.config.params import FinetuneParams, ImageParams
from vlm.config.task import Task
from vlm.data import dataset, json_files
from vlm.models import memory, runtime
from vlm.training import adapter, checkpoints, footprint, lora
from vlm.training.footprint import PATTERN_KEY

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, ProcessorMixin

    from vlm.training.features import Features
    from vlm.training.trainer import Trainer


@dataclass(frozen=True)
class FineTuning:
    """Trains a LoRA adapter on the split `train`, with regular validation passes over `validation`.

    Writes adapter/ and last/ (the best checkpoint on validation and the last one, in PEFT's format, with the
    processor), modules.csv (the modules with LoRA), checkpoints.csv (one row per validation pass), metrics.json and
    runtime.json. The loss is the mean cross-entropy of the answer's tokens, including the end-of-turn token.
    """

    task: Task
    model: ModelConfig
    image: ImageParams
    finetune: FinetuneParams
    seed: int
    train: str
    validation: str

    DATA_PARALLEL: ClassVar = True
    # The files that a stage takes from the job's folder; the rest is intermediate.
    RESULTS: ClassVar = ("adapter", "last", "modules.csv", "checkpoints.csv", "metrics.json", "runtime.json")
    # The packages of vlm whose code determines the result.
    PACKAGES: ClassVar = ("training", "evaluation", "models", "data", "config")

    @property
    def inputs(self) -> list[str]:
        """The files that the job reads."""
        return [self.train, self.validation]

    def run(self, directory: Path, emit: Emit) -> None:
        """Trains, or resumes from the last complete checkpoint in `directory`; on a CPU both lead to the same adapter.

        Under torchrun or `accelerate launch`, each process takes its part of every batch, and the first one reports and
        writes. Raises InputError for a pattern that matches no module or only some of those it names, and if the loss
        diverges; the checkpoints written before that are kept.
        """
        from vlm.training import reporting
        from vlm.training.trainer import processes

        started = time.perf_counter()
        state = processes()
        emit = reporting.once(emit) if state.is_main_process else reporting.silent
        self._require_trainable_dtype()
        if dataset.count(self.train) < self.finetune.batch_size:
            emit(
                Log(
                    f"warning: params.yaml: finetune.batch_size: {self.finetune.batch_size} is more than the "
                    f"{dataset.count(self.train)} training rows: every epoch is one step"
                )
            )
        trainer, processor, modules, done_before = self._train_in_memory(directory, state.num_processes, emit)
        state.wait_for_everyone()
        if state.is_main_process:
            self._write_results(directory, trainer, processor, modules, emit)
            samples = (trainer.state.global_step - done_before) * self.finetune.batch_size
            runtime.write(directory / "runtime.json", runtime.measured(samples, time.perf_counter() - started))

    def _require_trainable_dtype(self) -> None:
        import torch

        if self.model.dtype != "float16":
            return
        if self.finetune.lora.bias != "none":
            raise InputError(
                f"params.yaml: finetune.lora.bias: {self.finetune.lora.bias} trains the float16 weights themselves, "
                f"whose gradients cannot be scaled; use none, or bfloat16 in configs/models/{self.model.name}.yaml"
            )
        if not torch.cuda.is_available():
            raise InputError(
                f"configs/models/{self.model.name}.yaml: options.dtype: float16 cannot be trained without a GPU; "
                "use float32 or bfloat16"
            )

    def _train_in_memory(
        self, directory: Path, processes: int, emit: Emit
    ) -> "tuple[Trainer, ProcessorMixin, dict, int]":
        """`_train` with the largest micro-batch that fits into memory: by arithmetic on a GPU, then by trying."""
        per_process, rest = divmod(self.finetune.batch_size, processes)
        micro_batch = self.finetune.micro_batch or per_process
        if rest or per_process % micro_batch:
            raise InputError(
                f"params.yaml: finetune.batch_size: {self.finetune.batch_size} should be a multiple of "
                f"{processes} processes x {micro_batch or 1} samples at once (finetune.micro_batch)"
                + (", with one process for each GPU in CUDA_VISIBLE_DEVICES" if processes > 1 else "")
            )
        chosen = footprint.split(self, per_process, footprint.gpu_memory(), processes, emit)
        while True:
            knobs = self.finetune.model_copy(update={"gradient_checkpointing": chosen.checkpointing})
            try:
                return replace(self, finetune=knobs)._train(directory, chosen.samples, emit)
            except RuntimeError as error:
                if not memory.is_out_of_memory(error):
                    raise
            # Outside the except block, where the exception would keep the tensors that did not fit alive.
            smaller = footprint.smaller(chosen, per_process, self.finetune.gradient_checkpointing)
            if smaller is None:
                raise InputError(
                    "params.yaml: finetune.micro_batch: not even one sample fits into this device's memory; "
                    "lower image.max_tokens to make samples smaller"
                )
            if processes > 1:  # the others are still waiting for this one in the middle of a step
                raise InputError(
                    f"params.yaml: finetune.micro_batch: a device's memory does not hold {chosen}; "
                    f"try {smaller.samples}" + (", and gradient_checkpointing: true" if smaller.checkpointing else "")
                )
            chosen = smaller
            memory.free_memory()
            emit(Log(f"out of memory; continuing with {chosen}, and as many per step as before"))

    def _train(self, directory: Path, micro_batch: int, emit: Emit) -> "tuple[Trainer, ProcessorMixin, dict, int]":
        """Trains; returns the trainer, the processor, the modules with LoRA, and the steps done by earlier runs."""
        from vlm.models import loading
        from vlm.training import features, reporting

        model, processor = loading.load(self.model, self.image)
        modules = self.lora_modules(model)
        scratch = directory / "scratch"  # for files that can be recreated
        kept = None
        if self._keeps_features(modules):
            splits = [self.train, self.validation]
            budget = self.finetune.cache_image_features
            kept = features.precompute(model, processor, self.task, splits, scratch / "features", budget, emit)
        trainer = self.trainer(model, processor, directory / "checkpoints", emit, micro_batch, kept)
        checkpoint = checkpoints.last_checkpoint(directory / "checkpoints")
        done_before = 0
        if checkpoint:
            state = json.loads((checkpoint / "trainer_state.json").read_text())
            done_before = state["global_step"]
            emit(Log(f"resuming from the checkpoint of step {done_before}"))
            for entry in state["log_history"]:
                reporting.emit_scalars(entry, emit)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        return trainer, processor, modules, done_before

    def _keeps_features(self, modules: dict[str, "torch.nn.Linear"]) -> bool:
        """Whether a picture's features are needed more than once and do not change during training."""
        knobs = self.finetune
        frozen = knobs.lora.bias != "all" and not any(lora.part(name) == "vision" for name in modules)
        return knobs.cache_image_features > 0 and knobs.epochs > 1 and knobs.augment == "none" and frozen

    def lora_modules(self, model: "PreTrainedModel") -> dict[str, "torch.nn.Linear"]:
        """The linear layers that finetune.lora.modules selects, by name.

        Raises InputError for a pattern that lora.matched_modules refuses, a rank that is larger than every layer, and
        learning rates that are 0 for all of the layers.
        """
        found = lora.matched_modules(model, self._pattern(model), PATTERN_KEY)
        knobs = self.finetune
        widest = max(min(layer.in_features, layer.out_features) for layer in found.values())
        if knobs.lora.r > widest:
            raise InputError(
                f"params.yaml: finetune.lora.r: {knobs.lora.r} is more than the {widest} of the largest layer that is "
                "adapted; usual values are 4 to 64"
            )
        parts = sorted({lora.part(name) for name in found})
        if not any(getattr(knobs.lr_scale, part) for part in parts):
            raise InputError(
                f"params.yaml: finetune.lr_scale: is 0 for {' and '.join(parts)}, the only parts with LoRA: nothing "
                "would be trained"
            )
        return found

    def _pattern(self, model: "PreTrainedModel") -> str:
        return lora.pattern_for(model, self.finetune.lora.modules, self.model.lora_modules, PATTERN_KEY)

    def trainer(
        self,
        model: "PreTrainedModel",
        processor: "ProcessorMixin",
        directory: Path,
        emit: Emit,
        micro_batch: int | None = None,
        kept: "dict[str, Features] | None" = None,
    ) -> "Trainer":
        """Adds LoRA layers to the model; returns TRL's trainer, ready to train. See vlm.training.trainer.build."""
        from vlm.evaluation import batching
        from vlm.training import trainer as trl
        from vlm.training.validation import CollapseWarning, validate, validation_rows

        params, warn = self.finetune, CollapseWarning(self.task, emit)
        at_once = micro_batch or params.micro_batch or params.batch_size
        made = trl.build(self, model, processor, directory, emit, self._pattern(model), at_once, kept)
        load = kept[self.validation] if kept else batching.Loader(self.validation, processor, self.task)

        def validation_pass() -> dict[str, float]:
            rows = validation_rows(self.validation, params.eval_samples, self.seed)
            # Of the size of a step's batch, and not of a micro-batch, which depends on the device.
            batch_size, state = params.batch_size, trl.processes()
            check = partial(warn, made.state.global_step)
            return validate(
                made.model, processor, self.task, self.validation, rows, load, batch_size, state, emit, check
            )

        made.validate = validation_pass
        return made

    def _write_results(
        self,
        directory: Path,
        trainer: Any,
        processor: "ProcessorMixin",
        modules: dict[str, "torch.nn.Linear"],
        emit: Emit,
    ) -> None:
        from vlm.training.validation import no_better_than_constant, validation_rows

        state = trainer.state
        passes = checkpoints.validation_passes(state)
        (best,) = [row for row in passes if row["step"] == state.best_global_step]
        for name, row in (("adapter", best), ("last", passes[-1])):
            checkpoint = directory / "checkpoints" / f"checkpoint-{row['step']}"
            adapter.save(self, checkpoint, directory / name, processor, row)
        checkpoints.write_csv(directory / "modules.csv", lora.table(modules, trainer.model))
        checkpoints.write_csv(
            directory / "checkpoints.csv", [{name: row[name] for name in checkpoints.COLUMNS} for row in passes]
        )
        rows = validation_rows(self.validation, self.finetune.eval_samples, self.seed)
        warning = no_better_than_constant(self.validation, rows, best["accuracy"])
        if warning:
            emit(Log(warning))
        values = {
            "steps": state.global_step,
            "best_step": state.best_global_step,
            "train_loss": passes[-1]["train_loss"],
            "eval_loss": best["eval_loss"],
            "val_accuracy": best["accuracy"],
            "val_samples": len(rows),
            "val_low": best["low"],
            "val_high": best["high"],
            "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
            "lora_modules": len(modules),
        }
        json_files.write(directory / "metrics.json", values)
