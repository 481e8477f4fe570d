"""The fine-tuning job: trains a LoRA adapter, and goes on where a killed run stopped."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vlm.config.errors import InputError
from vlm.config.events import Emit, Log
from vlm.config.models import ModelConfig
from vlm.config.params import FinetuneParams, ImageParams
from vlm.config.task import Task
from vlm.data import dataset
from vlm.models import memory, runtime
from vlm.training import adapter, checkpoints, lora

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, ProcessorMixin

    from vlm.training.features import Features
    from vlm.training.trainer import Trainer

_PATTERN_KEY = "params.yaml: finetune.lora.modules"


@dataclass(frozen=True)
class FineTuning:
    """Trains a LoRA adapter on the split `train`, with validation passes over `validation` as it goes.

    Writes adapter/ and last/ (the best checkpoint on validation and the last one, as PEFT loads them, with the
    processor), modules.csv (the modules that LoRA was put on), checkpoints.csv (a row for each validation pass),
    metrics.json and runtime.json. The loss is the mean cross-entropy of the answer's tokens, the end-of-turn token
    included.
    """

    task: Task
    model: ModelConfig
    image: ImageParams
    finetune: FinetuneParams
    seed: int
    train: str
    validation: str

    DATA_PARALLEL: ClassVar = True
    # What a stage takes out of the job's folder; the rest is unfinished work.
    RESULTS: ClassVar = ("adapter", "last", "modules.csv", "checkpoints.csv", "metrics.json", "runtime.json")
    # The packages of vlm that decide the result.
    PACKAGES: ClassVar = ("training", "evaluation", "models", "data", "config")

    @property
    def inputs(self) -> list[str]:
        """The files that the job reads."""
        return [self.train, self.validation]

    def run(self, directory: Path, emit: Emit) -> None:
        """Trains, or resumes from the last complete checkpoint in `directory`; on a CPU both give the same adapter.

        In processes started by torchrun or `accelerate launch`, each takes its part of every batch, and the first one
        reports and writes. Raises InputError for a pattern that matches no module or only some of what it names, and
        for a loss that diverges; the checkpoints before that stay.
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
            self._write_results(directory, trainer, processor, modules)
            samples = (trainer.state.global_step - done_before) * self.finetune.batch_size
            runtime.write(directory / "runtime.json", runtime.measured(samples, time.perf_counter() - started))

    def _require_trainable_dtype(self) -> None:
        import torch

        if self.model.dtype != "float16":
            return
        if self.finetune.lora.bias != "none":
            raise InputError(
                f"params.yaml: finetune.lora.bias: {self.finetune.lora.bias} trains float16 weights themselves, whose "
                f"gradients cannot be scaled; none, or bfloat16 in configs/models/{self.model.name}.yaml, works"
            )
        if not torch.cuda.is_available():
            raise InputError(
                f"configs/models/{self.model.name}.yaml: options.dtype: float16 cannot be trained without a GPU; "
                "float32 and bfloat16 can"
            )

    def _train_in_memory(
        self, directory: Path, processes: int, emit: Emit
    ) -> "tuple[Trainer, ProcessorMixin, dict, int]":
        """`_train` with as large a micro-batch as fits into memory."""
        per_process, rest = divmod(self.finetune.batch_size, processes)
        micro_batch = self.finetune.micro_batch or per_process
        if rest or per_process % micro_batch:
            raise InputError(
                f"params.yaml: finetune.batch_size: {self.finetune.batch_size} should be a multiple of "
                f"{processes} processes x {micro_batch or 1} samples at once (finetune.micro_batch)"
                + (", one for each GPU that CUDA_VISIBLE_DEVICES shows" if processes > 1 else "")
            )
        while True:
            try:
                return self._train(directory, micro_batch, emit)
            except RuntimeError as error:
                if not memory.is_out_of_memory(error):
                    raise
            # Not inside the except block: there the exception would keep the tensors alive that did not fit.
            if micro_batch == 1:
                raise InputError(
                    "params.yaml: finetune.micro_batch: not even one sample at once fits into this device's memory; "
                    "image.max_tokens makes samples smaller"
                )
            smaller = max(n for n in range(1, micro_batch // 2 + 1) if per_process % n == 0)
            if processes > 1:  # the others still wait for this one in the middle of a step
                raise InputError(
                    f"params.yaml: finetune.micro_batch: {micro_batch} samples at once do not fit into a device's "
                    f"memory; {smaller} might"
                )
            micro_batch = smaller
            memory.free_memory()
            emit(Log(f"out of memory; going on with {micro_batch} samples at once, and as many to a step as before"))

    def _train(self, directory: Path, micro_batch: int, emit: Emit) -> "tuple[Trainer, ProcessorMixin, dict, int]":
        """The trainer after training, the processor, the modules with LoRA, and the steps done by earlier runs."""
        from vlm.models import loading
        from vlm.training import features, reporting

        model, processor = loading.load(self.model, self.image)
        modules = self.lora_modules(model)
        scratch = directory / "scratch"  # for what can be made again
        kept = None
        if self._keeps_features(modules):
            splits = [self.train, self.validation]
            budget = self.finetune.cache_image_features
            kept = features.precompute(
                model, processor, self.task, splits, scratch / "features", micro_batch, budget, emit
            )
        trainer = self.trainer(model, processor, directory / "checkpoints", emit, micro_batch, kept)
        checkpoint = checkpoints.last_checkpoint(directory / "checkpoints")
        done_before = 0
        if checkpoint:
            state = json.loads((checkpoint / "trainer_state.json").read_text())
            done_before = state["global_step"]
            emit(Log(f"going on from the checkpoint of step {done_before}"))
            for entry in state["log_history"]:
                reporting.emit_scalars(entry, emit)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        return trainer, processor, modules, done_before

    def _keeps_features(self, modules: dict[str, "torch.nn.Linear"]) -> bool:
        """Whether a picture's features are needed more than once and do not change while the adapter is trained."""
        knobs = self.finetune
        frozen = knobs.lora.bias != "all" and not any(lora.part(name) == "vision" for name in modules)
        return knobs.cache_image_features > 0 and knobs.epochs > 1 and knobs.augment == "none" and frozen

    def lora_modules(self, model: "PreTrainedModel") -> dict[str, "torch.nn.Linear"]:
        """The linear layers that finetune.lora.modules names, by name.

        Raises InputError for a pattern that does not match as it should (see vlm.training.lora), a rank that is larger
        than every layer, and learning rates that train none of the layers.
        """
        found = lora.matched_modules(model, self._pattern(model), _PATTERN_KEY)
        knobs = self.finetune
        widest = max(min(layer.in_features, layer.out_features) for layer in found.values())
        if knobs.lora.r > widest:
            raise InputError(
                f"params.yaml: finetune.lora.r: {knobs.lora.r} is more than the {widest} of the largest layer that is "
                "adapted; 4 to 64 is usual"
            )
        parts = sorted({lora.part(name) for name in found})
        if not any(getattr(knobs.lr_scale, part) for part in parts):
            raise InputError(
                f"params.yaml: finetune.lr_scale: is 0 for {' and '.join(parts)}, the only parts with LoRA: nothing "
                "would be trained"
            )
        return found

    def _pattern(self, model: "PreTrainedModel") -> str:
        return lora.pattern_for(model, self.finetune.lora.modules, self.model.lora_modules, _PATTERN_KEY)

    def trainer(
        self,
        model: "PreTrainedModel",
        processor: "ProcessorMixin",
        directory: Path,
        emit: Emit,
        micro_batch: int | None = None,
        kept: "dict[str, Features] | None" = None,
    ) -> "Trainer":
        """TRL's trainer, ready to train; the model gets its LoRA layers. See vlm.training.trainer.build."""
        from vlm.evaluation import batching
        from vlm.training import trainer as trl
        from vlm.training.validation import validate, validation_rows

        params = self.finetune
        at_once = micro_batch or params.micro_batch or params.batch_size
        made = trl.build(self, model, processor, directory, emit, self._pattern(model), at_once, kept)
        load = kept[self.validation] if kept else batching.Loader(self.validation, processor, self.task)

        def validation_pass() -> dict[str, float]:
            rows = validation_rows(self.validation, params.eval_samples, self.seed)
            # A batch of a training step's size is known to fit.
            return validate(made.model, processor, self.task, self.validation, rows, load, at_once, trl.processes())

        made.validate = validation_pass
        return made

    def _write_results(
        self, directory: Path, trainer: Any, processor: "ProcessorMixin", modules: dict[str, "torch.nn.Linear"]
    ) -> None:
        from vlm.training.validation import validation_rows

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
        values = {
            "steps": state.global_step,
            "best_step": state.best_global_step,
            "train_loss": passes[-1]["train_loss"],
            "eval_loss": best["eval_loss"],
            "val_accuracy": best["accuracy"],
            "val_samples": len(validation_rows(self.validation, self.finetune.eval_samples, self.seed)),
            "val_low": best["accuracy_low"],
            "val_high": best["accuracy_high"],
            "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
            "lora_modules": len(modules),
        }
        (directory / "metrics.json").write_text(json.dumps(values))
