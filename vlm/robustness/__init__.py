"""The robustness job: the base and the fine-tuned model's answers to corrupted pictures of the test split."""

from vlm.robustness.job import Robustness

__all__ = ["Robustness"]
