"""The fine-tuning job: LoRA with PEFT, trained with TRL on the task's own prompt and answers."""

from vlm.training.job import FineTuning

__all__ = ["FineTuning"]
