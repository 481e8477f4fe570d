"""The learning rate of a fine-tune: `finetune.learning_rate`, or what its null and auto stand for."""

from vlm.config.models import ModelConfig
from vlm.config.params import FinetuneParams

# J. Schulman et al., "LoRA Without Regret" (Thinking Machines, 2025): the best rate for LoRA is about ten times that of
# full fine-tuning, whatever the rank. The rule for auto is the one that they fitted to Llama models, whose hidden sizes
# are 2,048 to 8,192: 5e-5 * (2000 / hidden size) ** 0.78, times ten for LoRA.
_LORA_OVER_FULL = 10.0
_AT_2000 = 5e-5
_EXPONENT = 0.78


def peak(finetune: FinetuneParams, model: ModelConfig, hidden: int) -> float:
    """The highest learning rate of the schedule; `hidden` is the size of the language model's hidden states."""
    lora = finetune.method == "lora"
    if finetune.learning_rate == "auto":
        return _AT_2000 * (2000 / hidden) ** _EXPONENT * (_LORA_OVER_FULL if lora else 1)
    if finetune.learning_rate is None:
        return model.learning_rate if lora else model.learning_rate / _LORA_OVER_FULL
    return finetune.learning_rate


def described(finetune: FinetuneParams, rate: float) -> str:
    """A log line about a rate that params.yaml does not give as a number."""
    source = (
        "by the rule for auto" if finetune.learning_rate == "auto" else "a tenth of the model's, for full fine-tuning"
    )
    return f"learning rate {rate:.4g}, {source}"
