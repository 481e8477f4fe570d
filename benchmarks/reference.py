"""The fine-tuning recipe of the tutorial that this pipeline grew out of, under transformers.Trainer, for comparisons.

The tutorial's script does not run with current TRL (SFTTrainer refuses a list as data set), so this does the same:
batch 1 with 16 steps of accumulation, gradient checkpointing, loss on every token (prompt and image placeholders too),
the bare label as the answer, pictures preprocessed in the training loop, the last weights as the result. AdamW, the
schedule (cosine after 5 % of warm-up) and LoRA's rank, alpha and dropout are those of params.yaml, as in our own job.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vlm.config.params import FinetuneParams
from vlm.config.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin, Trainer, TrainerCallback

BATCH = 16  # samples per optimizer step, one at a time
# Of these names LFM2-VL has q_proj and v_proj (in the language model and the vision tower), fc1 and fc2 (in the vision
# tower). PEFT silently ignores the other four.
TARGETS = ("q_proj", "v_proj", "fc1", "fc2", "linear", "gate_proj", "up_proj", "down_proj")
LEARNING_RATE = 0.0005


def trainer(
    model: "PreTrainedModel",
    processor: "ProcessorMixin",
    task: Task,
    finetune: FinetuneParams,
    data: str,
    directory: Path,
    seed: int,
    learning_rate: float,
    targets: tuple[str, ...] | str = TARGETS,
    checkpointing: bool = True,
    callbacks: "tuple[TrainerCallback, ...]" = (),
) -> "Trainer":
    """Returns a trainer of `task.answer`, ready to train. Without `checkpointing`, gradients are equal but faster."""
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed

    set_seed(seed)  # LoRA's initial weights are random
    knobs = finetune.lora
    wrapped = get_peft_model(
        model,
        LoraConfig(
            r=knobs.r,
            lora_alpha=knobs.alpha,
            lora_dropout=knobs.dropout,
            target_modules=targets if isinstance(targets, str) else list(targets),
            task_type="CAUSAL_LM",
        ),
    )
    made = Trainer(
        model=wrapped,
        args=TrainingArguments(
            output_dir=str(directory),
            num_train_epochs=finetune.epochs,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=BATCH,
            activation_checkpointing=checkpointing,
            learning_rate=learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.05,  # a fraction of all steps
            seed=seed,
            data_seed=seed,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            log_level="error",
        ),
        data_collator=collator(processor, task),
        train_dataset=Dataset.from_parquet(data, cache_dir=str(directory / "datasets")),
        callbacks=list(callbacks),
    )
    made.remove_callback(PrinterCallback)
    return made


def collator(processor: "ProcessorMixin", task: Task) -> Callable[[list[dict]], dict]:
    """Turns rows into chats with their answers; every token except padding is a label."""

    def collate(rows: list[dict]) -> dict:
        turns = [
            {"role": "assistant", "content": [{"type": "text", "text": task.answer(row["label"])}]} for row in rows
        ]
        texts = [processor.apply_chat_template([*task.conversation(), turn], tokenize=False) for turn in turns]
        images = [[row["image"].convert("RGB")] for row in rows]
        batch = processor(images=images, text=texts, padding=True, add_special_tokens=False, return_tensors="pt")
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        return dict(batch)

    return collate
