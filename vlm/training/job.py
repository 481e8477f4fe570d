"""The fine-tuning job: trains a LoRA adapter or the whole model, and resumes where a killed run stopped."""

import importlib.util
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
from vlm.training import adapter, checkpoints, duration, footprint, full, lora
from vlm.training.footprint import PATTERN_KEY

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, ProcessorMixin

    from vlm.training.features import Features
    from vlm.training.trainer import Trainer

    Loaded = tuple[PreTrainedModel, ProcessorMixin]


@dataclass(frozen=True)
class FineTuning:
    """Trains a LoRA adapter, or the whole model, on the split `train`, with validation passes over `validation`.

    Writes adapter/ and last/ (the best checkpoint on validation and the last one, in PEFT's format or as a whole model,
    with the processor), modules.csv (the modules with LoRA, or with trained weights), checkpoints.csv (one row per
    validation pass), metrics.json and runtime.json. vlm.training.losses has the losses.
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
        """Trains, or resumes from the last complete checkpoint in `directory`; on a CPU both lead to the same weights.

        Under torchrun or `accelerate launch`, each process takes its part of every batch, and the first one reports and
        writes. Raises InputError for settings that cannot train, a pattern that matches no module or only some of those
        it names, and if the loss diverges; the checkpoints written before that are kept.
        """
        from vlm.training import reporting
        from vlm.training.trainer import processes

        started = time.perf_counter()
        state = processes()
        emit = reporting.once(emit) if state.is_main_process else reporting.silent
        self.require_trainable()
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

    def require_trainable(self) -> None:
        """Raises InputError for a loss, an optimizer or a dtype that cannot train this task and model here."""
        import torch

        knobs = self.finetune
        if knobs.loss == "labels" and len(self.task.labels) == 1:
            raise InputError(
                f"params.yaml: finetune.loss: labels: {self.task.name} has one label, so there is nothing to learn; "
                "use tokens, or add labels"
            )
        if knobs.optimizer == "adamw_8bit":
            lacking = "an NVIDIA GPU, and there is none here"
            if torch.cuda.is_available():
                lacking = "the package bitsandbytes, which is not installed"
            if not torch.cuda.is_available() or importlib.util.find_spec("bitsandbytes") is None:
                raise InputError(f"params.yaml: finetune.optimizer: adamw_8bit needs {lacking}; use adamw")
        if self.model.dtype != "float16":
            return
        if knobs.method == "lora" and knobs.lora.bias != "none":
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
        loaded: Loaded | None = self.load()
        chosen = footprint.split(self, per_process, footprint.gpu_memory(), processes, emit, loaded)
        epochs = self.finetune.epochs or duration.measured(self, loaded, emit)
        while True:
            knobs = self.finetune.model_copy(update={"epochs": epochs, "gradient_checkpointing": chosen.checkpointing})
            try:
                return replace(self, finetune=knobs)._train(directory, chosen.samples, emit, loaded or self.load())
            except RuntimeError as error:
                if not memory.is_out_of_memory(error):
                    raise
            # Outside the except block, where the exception would keep the tensors that did not fit alive.
            loaded = None  # it has LoRA layers now
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

    def load(self) -> "Loaded":
        """The base model and its processor; in float32 if its own weights are trained (see vlm.training.full)."""
        from vlm.models import loading

        whole = self.finetune.method == "full"
        config = self.model.model_copy(update={"dtype": "float32"}) if whole else self.model
        return loading.load(config, self.image)

    def _train(
        self, directory: Path, micro_batch: int, emit: Emit, loaded: "Loaded"
    ) -> "tuple[Trainer, ProcessorMixin, dict, int]":
        """Trains; returns the trainer, the processor, the modules with LoRA, and the steps done by earlier runs."""
        from vlm.training import features, reporting

        model, processor = loaded
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
        if knobs.method == "full":
            frozen = knobs.lr_scale.vision == 0
        again = knobs.epochs is None or knobs.epochs > 1
        return knobs.cache_image_features > 0 and again and knobs.augment == "none" and frozen

    def lora_modules(self, model: "PreTrainedModel") -> dict[str, "torch.nn.Linear"]:
        """The linear layers that finetune.lora.modules selects, by name; none if the whole model is trained.

        Raises InputError for a pattern that lora.matched_modules refuses, a rank that is larger than every layer, and
        learning rates that are 0 for all of the layers.
        """
        pattern, knobs = self.pattern(model), self.finetune
        if pattern is None:
            return {}
        found = lora.matched_modules(model, pattern, PATTERN_KEY)
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

    def pattern(self, model: "PreTrainedModel") -> str | None:
        """The pattern of the modules with LoRA; None if the whole model is trained."""
        if self.finetune.method == "full":
            return None
        return lora.pattern_for(model, self.lora_parts, self.model.lora_modules, PATTERN_KEY)

    @property
    def lora_parts(self) -> str:
        """The parts of the model with LoRA, or a pattern for its modules."""
        return self.finetune.lora.modules or self.model.lora_parts

    def trainer(
        self,
        model: "PreTrainedModel",
        processor: "ProcessorMixin",
        directory: Path,
        emit: Emit,
        micro_batch: int | None = None,
        kept: "dict[str, Features] | None" = None,
    ) -> "Trainer":
        """Prepares the model for training; returns TRL's trainer, ready to train. See vlm.training.trainer.build."""
        from vlm.evaluation import batching
        from vlm.training import trainer as trl
        from vlm.training.validation import (
            CollapseWarning,
            is_midway,
            no_better_than_constant,
            validate,
            validation_rows,
        )

        params, warn = self.finetune, CollapseWarning(self.task, emit)
        at_once = micro_batch or params.micro_batch or params.batch_size
        made = trl.build(self, model, processor, directory, emit, self.pattern(model), at_once, kept)
        load = kept[self.validation] if kept else batching.Loader(self.validation, processor, self.task, model.dtype)

        def validation_pass() -> dict[str, float]:
            rows = validation_rows(self.validation, params.eval_samples, self.seed)
            # Of the size of a step's batch, and not of a micro-batch, which depends on the device.
            batch_size, processes, state = params.batch_size, trl.processes(), made.state
            check = partial(warn, state.global_step)
            found = validate(
                made.model, processor, self.task, self.validation, rows, load, batch_size, processes, emit, check
            )
            steps = {entry["step"] for entry in state.log_history if "eval_loss" in entry} - {state.global_step}
            if is_midway(sorted(steps), state.global_step, state.max_steps):
                what = f"the model at step {state.global_step} of {state.max_steps}"
                warning = no_better_than_constant(self.validation, rows, found["accuracy"], what, params.loss)
                if warning:
                    emit(Log(warning))
            return found

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
            adapter.save(self, checkpoint, directory / name, processor, row, trainer.args.learning_rate)
        table = lora.table(modules, trainer.model) if modules else full.table(trainer.model)
        checkpoints.write_csv(directory / "modules.csv", table)
        checkpoints.write_csv(
            directory / "checkpoints.csv", [{name: row[name] for name in checkpoints.COLUMNS} for row in passes]
        )
        rows = validation_rows(self.validation, self.finetune.eval_samples, self.seed)
        what, loss = "the best checkpoint", self.finetune.loss
        warning = no_better_than_constant(self.validation, rows, best["accuracy"], what, loss)
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
