"""Honest baselines: what simple classifiers on the frozen base model's vision features reach on the same samples."""

from vlm.probing.job import FeatureExtraction

__all__ = ["FeatureExtraction"]
