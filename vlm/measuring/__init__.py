"""From predictions to metrics, tables and pictures. Cheap: nothing here runs a model."""

from vlm.measuring.answers import Predictions

__all__ = ["Predictions"]
