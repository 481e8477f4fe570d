"""The fine-tuning job: LoRA with PEFT, trained with TRL on the task's own prompt and answers."""

import csv
import json
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm import runtime
from vlm.errors import InputError
from vlm.events import Emit, Log, Progress, Scalars
from vlm.params import FinetuneParams, ImageParams, ModelConfig
from vlm.task import Task

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

# What the trainer's log calls a number -> what DVCLive calls it. Times and speeds differ between equal runs: left out.
_SCALARS = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "eval_loss": "eval/loss",
}


@dataclass(frozen=True)
class FineTuning:
    """Trains a LoRA adapter on `train`, looking at `validation` as it goes.

    Writes adapter/ (as PEFT loads it), modules.csv (the modules that LoRA was put on, with their parameters),
    metrics.json and runtime.json. The loss is the mean cross-entropy of the answer's tokens, the end of the turn
    included.
    """

    task: Task
    model: ModelConfig
    image: ImageParams
    finetune: FinetuneParams
    seed: int
    train: str
    validation: str

    @property
    def inputs(self) -> list[str]:
        """The files that the job reads."""
        return [self.train, self.validation]

    def run(self, directory: Path, emit: Emit) -> None:
        """Trains, or goes on from the last complete checkpoint in `directory`; both end with the same adapter on a CPU.

        Raises InputError for a pattern of modules that matches none, or parts of a module.
        """
        started = time.perf_counter()
        from vlm import model

        loaded, processor = model.load(self.model, self.image)
        modules = self.lora_modules(loaded)
        trainer = self.trainer(loaded, processor, directory / "checkpoints", emit)
        checkpoint = last_checkpoint(directory / "checkpoints")
        done_before = 0
        if checkpoint:
            state = json.loads((checkpoint / "trainer_state.json").read_text())
            done_before = state["global_step"]
            emit(Log(f"going on from the checkpoint of step {done_before}"))
            for entry in state["log_history"]:
                _emit_scalars(entry, emit)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        self._save_adapter(trainer.model, directory / "adapter")

        with (directory / "modules.csv").open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["module", "in_features", "out_features", "trainable_parameters"])
            rank = self.finetune.lora.r
            for name, layer in modules.items():
                size = rank * (layer.in_features + layer.out_features)
                writer.writerow([name, layer.in_features, layer.out_features, size])
        history = trainer.state.log_history
        metrics = {
            "steps": trainer.state.global_step,
            "train_loss": [entry["loss"] for entry in history if "loss" in entry][-1],
            "eval_loss": [entry["eval_loss"] for entry in history if "eval_loss" in entry][-1],
            "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
            "lora_modules": len(modules),
        }
        (directory / "metrics.json").write_text(json.dumps(metrics))
        samples = (trainer.state.global_step - done_before) * self.finetune.batch_size
        runtime.write(directory / "runtime.json", runtime.measured(samples, time.perf_counter() - started))

    def lora_modules(self, model: "PreTrainedModel") -> dict[str, "torch.nn.Linear"]:
        """The linear layers that the pattern matches, by name."""
        import torch

        pattern = self._pattern
        matched = {name: layer for name, layer in model.named_modules() if re.fullmatch(pattern, name)}
        if not matched:
            examples = [name for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)][:3]
            raise InputError(
                f"{self._pattern_key}: {pattern!r} matches no module of {self.model.id}, "
                f"which has {', '.join(examples)}, ..."
            )
        for name, layer in matched.items():
            if not isinstance(layer, torch.nn.Linear):
                raise InputError(
                    f"{self._pattern_key}: {pattern!r} matches {name}, a {type(layer).__name__}; "
                    "only linear layers will do"
                )
        return matched

    @property
    def _pattern(self) -> str:
        pattern = self.finetune.lora.modules or self.model.lora_modules
        if pattern is None:
            raise InputError(
                f"params.yaml: finetune.lora.modules: is null, and configs/models/{self.model.name}.yaml has no "
                "lora_modules; give a regular expression over module names"
            )
        return pattern

    @property
    def _pattern_key(self) -> str:
        if self.finetune.lora.modules:
            return "params.yaml: finetune.lora.modules"
        return f"configs/models/{self.model.name}.yaml: lora_modules"

    def trainer(self, model: "PreTrainedModel", processor: Any, directory: Path, emit: Emit) -> Any:
        import torch
        from peft import LoraConfig
        from transformers import PrinterCallback
        from trl import SFTConfig, SFTTrainer

        params = self.finetune
        micro_batch = params.micro_batch or params.batch_size
        arguments = SFTConfig(
            output_dir=str(directory),
            num_train_epochs=params.epochs,
            per_device_train_batch_size=micro_batch,
            per_device_eval_batch_size=micro_batch,
            gradient_accumulation_steps=params.batch_size // micro_batch,
            learning_rate=params.learning_rate or self.model.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.05,  # of all steps
            seed=self.seed,
            data_seed=self.seed,
            bf16=self.model.dtype == "bfloat16",
            fp16=self.model.dtype == "float16",
            activation_checkpointing=False,
            dataloader_pin_memory=torch.cuda.is_available(),
            max_length=None,  # cutting a prompt would cut image tokens off
            completion_only_loss=True,
            remove_unused_columns=False,
            logging_steps=1,
            eval_strategy="steps",
            eval_steps=params.eval_steps,
            save_strategy="steps",
            save_steps=params.eval_steps,
            save_total_limit=2,
            report_to=[],
            disable_tqdm=True,
            log_level="error",
        )
        trainer = SFTTrainer(
            model=model,
            args=arguments,
            train_dataset=self._samples(self.train, directory),
            eval_dataset=self._samples(self.validation, directory),
            processing_class=processor,
            # A pattern stays as it is; PEFT would write a list in an order that changes from run to run.
            peft_config=LoraConfig(
                r=params.lora.r,
                lora_alpha=params.lora.alpha,
                lora_dropout=params.lora.dropout,
                target_modules=self._pattern,
                task_type="CAUSAL_LM",
            ),
            callbacks=[_reporter(emit)],
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    def _samples(self, data: str, directory: Path) -> Any:
        """The split as TRL's conversational prompt and completion, pictures decoded when they are asked for."""
        from datasets import Dataset

        prompt, answer = self.task.conversation(), self.task.answer

        def to_rows(columns: dict[str, list]) -> dict[str, list]:
            return {
                "images": [[image.convert("RGB")] for image in columns["image"]],
                "prompt": [prompt] * len(columns["label"]),
                "completion": [[{"role": "assistant", "content": answer(label)}] for label in columns["label"]],
            }

        rows = Dataset.from_parquet(data, cache_dir=str(directory / "datasets"))
        return rows.with_transform(to_rows)

    def _save_adapter(self, model: Any, directory: Path) -> None:
        from vlm import model as loading

        model.peft_config["default"].revision = loading.hub_revision(self.model)
        shutil.rmtree(directory, ignore_errors=True)
        model.save_pretrained(directory)
        (directory / "README.md").unlink()  # PEFT's empty template of a model card


def last_checkpoint(directory: Path) -> Path | None:
    """The latest checkpoint that was written to its end."""
    complete = []
    for checkpoint in directory.glob("checkpoint-*"):
        try:
            json.loads((checkpoint / "trainer_state.json").read_text())  # the trainer writes it last
        except (OSError, ValueError):
            continue
        complete.append(checkpoint)
    return max(complete, key=lambda path: int(path.name.removeprefix("checkpoint-")), default=None)


def _emit_scalars(entry: dict, emit: Emit) -> None:
    values = {name: float(entry[logged]) for logged, name in _SCALARS.items() if logged in entry}
    if values:
        emit(Scalars(entry["step"], values))


def _reporter(emit: Emit) -> Any:
    """A trainer callback that turns steps and logs into events."""
    from transformers import TrainerCallback

    class Reporter(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            emit(Progress(state.global_step, state.max_steps, "step"))

        def on_step_end(self, args, state, control, **kwargs):
            emit(Progress(state.global_step, state.max_steps, "step"))
            if state.global_step >= state.max_steps:
                control.should_evaluate = True  # whatever eval_steps is, the end has a validation loss

        def on_log(self, args, state, control, logs=None, **kwargs):
            _emit_scalars({**logs, "step": state.global_step}, emit)

    return Reporter()
