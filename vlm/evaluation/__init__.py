"""The evaluation job: asks a model about every sample of a split and records its answers."""

from vlm.evaluation.job import TEST, TRAIN, VALIDATION, Evaluation

__all__ = ["TEST", "TRAIN", "VALIDATION", "Evaluation"]
