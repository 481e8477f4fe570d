"""The label prior: what a model answers whatever it sees, estimated without labels and divided out of the posterior.

    corrected P(label | image)  is proportional to  P(label | image) / prior(label) ** strength

A model that favours some labels gives them a high probability for every picture. The prior measures that: the mean of
the posterior over pictures whose labels are not looked at.

- batch: over a sample of the training pictures. H. Zhou et al., "Batch Calibration: Rethinking Calibration for
  In-Context Learning and Prompt Engineering", ICLR 2024.
- blank: over pictures that show nothing. T. Z. Zhao et al., "Calibrate Before Use: Improving Few-Shot Performance of
  Language Models", ICML 2021, which does this with empty texts.

`batch` takes the labels for equally frequent: docs/structured-answers.md measures what it costs where they are not.
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.config import pins
from vlm.config.errors import InputError
from vlm.config.models import ModelConfig
from vlm.config.params import Prior
from vlm.config.task import Task
from vlm.data import dataset, json_files

if TYPE_CHECKING:
    import numpy as np

STRENGTH = 1.0  # of the correction: 1 divides the whole prior out (benchmarks/prior.py compares)
_KEYS = {"method", "samples", "strength", "probabilities", "question", "model", "revision", "adapter"}  # of an entry
_NOISE = 5  # blank pictures of noise, beside a black, a grey and a white one


def sample(count: int, samples: int, seed: int) -> list[int]:
    """The numbers of at most `samples` of `count` rows, in order, drawn without a look at what is in them."""
    import numpy as np

    drawn = np.random.default_rng(seed).permutation(count)[:samples]
    return sorted(int(row) for row in drawn)


def write_blank(path: Path, train: str, rows: Sequence[int], label: str, seed: int) -> None:
    """Writes a split of pictures that show nothing: black, grey, white, and noise, in the median size of `rows`.

    `rows` are rows of `train`; only the sizes of their pictures are read. A split has labels: all are `label`.
    """
    import numpy as np
    from PIL import Image

    of_all = dataset.image_sizes(train)
    sizes = sorted((of_all[row] for row in rows), key=lambda size: (size[0] * size[1], size))
    width, height = sizes[len(sizes) // 2]
    rng = np.random.default_rng(seed)
    pictures = [np.full((height, width, 3), level, np.uint8) for level in (0, 128, 255)]
    pictures += [rng.integers(0, 256, (height, width, 3), np.uint8) for _ in range(_NOISE)]
    written = []
    for number, pixels in enumerate(pictures):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        written.append(dataset.Row(f"blank-{number}", file.getvalue(), label))
    dataset.write(path, written)


def estimate(method: Prior, posteriors: Sequence[Sequence[float]]) -> dict[str, Any]:
    """The entry `prior` of predictions/<name>/test.json: method, samples, strength, and a probability for each label.

    `posteriors` is (samples, labels). The prior is their mean with one sample more, of equal probabilities: it keeps a
    label that the model never says from a prior of almost 0, and hardly changes the others. The probabilities are
    rounded as JSON files are, so that a reader of the file corrects as its writer did. Raises InputError if there is no
    sample.
    """
    import numpy as np

    if not len(posteriors):
        raise InputError("data/train.parquet: has no pictures to estimate the label prior from; set prior to none")
    p = np.asarray(posteriors, float)
    n, labels = p.shape
    shrunk = (p.sum(0) + 1 / labels) / (n + 1)
    rounded = [float(f"{value:.6g}") for value in shrunk]
    return {"method": method, "samples": n, "strength": STRENGTH, "probabilities": rounded}


def belongs_to(task: Task, model: ModelConfig, adapter: str | None) -> dict[str, Any]:
    """What a prior holds for, as keys of its entry: the question and its answers, the model and the adapter."""
    question = [task.conversation(), [(label, task.answer(label)) for label in task.labels]]
    return {
        "question": hashlib.sha256(json.dumps(question).encode()).hexdigest(),
        "model": model.id,
        "revision": model.revision,
        "adapter": pins.folder_hash(Path(adapter)) if adapter else None,
    }


def mismatch(entry: Mapping[str, Any], task: Task, model: ModelConfig, adapter: str | None) -> str | None:
    """What an entry does not belong to: "question", "model", "revision" or "adapter"; None if it belongs to all."""
    wanted = belongs_to(task, model, adapter)
    return next((key for key, value in wanted.items() if entry[key] != value), None)


def read(file: Path) -> dict[str, Any] | None:
    """The entry `prior` of a file predictions/<name>/test.json; None if it has none. Raises InputError."""
    try:
        values = json_files.read(file)
    except FileNotFoundError:
        raise InputError(f"{file}: no such file; name a file like predictions/structured_eval/test.json") from None
    except (OSError, ValueError):  # a folder, or no JSON or text
        raise InputError(f"{file}: is no JSON file; name a file like predictions/structured_eval/test.json") from None
    entry = values.get("prior") if isinstance(values, dict) else None
    if entry is None:
        return None
    missing = sorted(_KEYS - set(entry)) if isinstance(entry, dict) else ["everything"]
    if missing:
        raise InputError(f"{file}: prior: {missing[0]} is missing; an evaluation writes it")
    return entry


def offsets(entry: Mapping[str, Any]) -> list[float]:
    """What the correction adds to the logarithm of each label's probability, before normalising.

    `entry` is the entry `prior` of predictions/<name>/test.json.
    """
    import numpy as np

    return (-entry["strength"] * np.log(entry["probabilities"])).tolist()


def apply(probabilities: Sequence[Sequence[float]], offsets: Sequence[float]) -> "np.ndarray":
    """(samples, labels): the probabilities, each multiplied by exp(its label's offset), normalised."""
    import numpy as np
    from scipy.special import softmax

    smallest = np.finfo(np.float64).tiny  # in place of probabilities that underflowed to 0
    return softmax(np.log(np.maximum(np.asarray(probabilities, float), smallest)) + np.asarray(offsets), axis=1)
