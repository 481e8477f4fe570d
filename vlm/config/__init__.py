"""Validated configuration (params.yaml, tasks, models, pins), access to the Hub, and the errors and events of a run."""

from vlm.config.models import ModelConfig, load_model
from vlm.config.params import Params, load_params
from vlm.config.task import Task, load_task

__all__ = ["ModelConfig", "Params", "Task", "load_model", "load_params", "load_task"]
