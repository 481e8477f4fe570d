"""The rows of benchmarks/recipe.py: what each of them changes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks import reference


@dataclass(frozen=True)
class Variant:
    """A row of the table: `recipe` is reference, ours or none; the other fields are the changes to it."""

    name: str
    what: str
    recipe: str
    learning_rate: float | None = None  # None: the model file's
    bare: bool = False  # trains the bare label
    targets: str | None = None  # LoRA targets of ours; None: params.yaml's
    everything: bool = False  # loss on every token in ours
    finetune: Mapping[str, Any] = field(default_factory=dict)  # other changes to params.yaml's block
    prompted: bool = False  # starts from the model of models/prompt_tiny.py


# The names in reference.TARGETS that the model has, because our own job refuses the others
EXISTING = r"^.*\.(q_proj|v_proj|fc1|fc2)$"
# The settings before the labels loss, under which the rows `earlier settings` were run
EARLIER = {"learning_rate": 0.006, "targets": "language+projector", "finetune": {"loss": "tokens"}}
_RATES = (0.0001, 0.0005, 0.002, 0.006)  # to choose from for the reference
VARIANTS = [
    Variant("untrained", "the model before fine-tuning", "none"),
    Variant(
        "reference, 0.0005",
        "the reference's recipe (benchmarks/reference.py) and learning rate",
        "reference",
        reference.LEARNING_RATE,
        bare=True,
    ),
    Variant("reference, 0.0001", "the same with a smaller learning rate", "reference", 0.0001, bare=True),
    Variant("reference, 0.006", "the same with a larger learning rate", "reference", 0.006, bare=True),
    Variant(
        "ours",
        "our job with params.yaml's settings (`finetune.loss: both`), but as many epochs as the others",
        "ours",
    ),
    Variant("ours, tokens loss", "ours with `finetune.loss: tokens`", "ours", finetune={"loss": "tokens"}),
    Variant("ours, labels loss", "ours with `finetune.loss: labels`", "ours", finetune={"loss": "labels"}),
    Variant(
        "ours, frozen tower",
        "ours with `finetune.lora.modules: language+projector`",
        "ours",
        targets="language+projector",
    ),
    *(
        Variant(f"ours, rate {rate:g}", f"ours with `finetune.learning_rate: {rate:g}`", "ours", rate)
        for rate in (0.0005, 0.001, 0.006)
    ),
    Variant(
        "ours, rate auto",
        "ours with `finetune.learning_rate: auto`, which is 0.0043 for tiny",
        "ours",
        finetune={"learning_rate": "auto"},
    ),
    Variant("ours + augmentation", "ours with `finetune.augment: light`", "ours", finetune={"augment": "light"}),
    Variant(
        "full fine-tuning",
        "ours with `finetune.method: full`, at a tenth of the learning rate",
        "ours",
        finetune={"method": "full"},
    ),
    Variant(
        "best of all",
        "ours with `finetune.augment: light` and `finetune.epochs: null`, so with more samples than the other rows",
        "ours",
        finetune={"augment": "light", "epochs": None},
    ),
    Variant(
        "earlier settings",
        "ours with `finetune.loss: tokens`, LoRA in the language model and the projector, learning rate 0.006",
        "ours",
        **EARLIER,
    ),
    Variant(
        "earlier, loss on everything",
        "earlier settings with the loss on prompt and image placeholders, too",
        "ours",
        everything=True,
        **EARLIER,
    ),
    Variant(
        "earlier, loss on everything, 0.0005",
        "the same with the learning rate of reference, 0.0005",
        "ours",
        everything=True,
        **EARLIER | {"learning_rate": reference.LEARNING_RATE},
    ),
    Variant(
        "earlier, reference's targets",
        "earlier settings with LoRA on the reference's targets that exist",
        "ours",
        **EARLIER | {"targets": EXISTING},
    ),
    Variant(
        "earlier, bare answers",
        "earlier settings, trained on bare labels and scored on JSON",
        "ours",
        bare=True,
        **EARLIER,
    ),
    Variant(
        "earlier, reference's targets, bare answers",
        "both: the reference's recipe with the loss on the answer and the learning rate 0.006",
        "ours",
        bare=True,
        **EARLIER | {"targets": EXISTING},
    ),
    Variant(
        "prompt-trained: untrained",
        "tiny after models/prompt_tiny.py, to which the prompt is no news",
        "none",
        prompted=True,
    ),
    *(
        Variant(
            f"prompt-trained: reference, {rate:g}",
            f"the reference's recipe from there, with the learning rate {rate:g}",
            "reference",
            rate,
            bare=True,
            prompted=True,
        )
        for rate in _RATES
    ),
    Variant("prompt-trained: ours", "ours from there", "ours", prompted=True),
]
