"""The prompt search: which of many wordings of a task's prompt gives the best answers to the validation split."""

from vlm.prompting.job import PromptSearch

__all__ = ["PromptSearch"]
