"""`python -m vlm classify photo.jpg --adapter models/adapter`: prints labels and probabilities for your pictures.

If the evaluation of the same model and adapter corrected a label prior (vlm/evaluation/prior.py), so does this command.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from vlm.config import pins
from vlm.config.errors import InputError
from vlm.config.events import Emit, Event, Log
from vlm.config.models import load_model
from vlm.config.params import Params, load_params
from vlm.config.task import load_task
from vlm.evaluation import prior
from vlm.models import encoding, loading, memory
from vlm.sources import pictures

if TYPE_CHECKING:
    import torch
    from PIL import Image


@dataclass(frozen=True)
class Classification:
    """A file's labels with their probabilities, most probable first; or, in `error`, why it could not be read."""

    file: Path
    labels: list[tuple[str, float]]
    error: str | None = None


def classify(
    files: list[Path],
    params: Params,
    adapter: str | None = None,
    emit: Emit = lambda event: None,
    offsets: Sequence[float] | None = None,
) -> Iterator[Classification]:
    """Yields one classification for each file, in order.

    `offsets` correct the label prior (prior.offsets); None: they are not corrected. Classifies evaluation.batch_size
    pictures at once, or fewer if memory is short. Raises InputError if the model cannot be loaded, or if not even one
    picture fits into the device's memory.
    """
    import torch

    from vlm.evaluation.posterior import Posterior

    loaded, processor = loading.load(params.model, params.image, adapter)
    posterior, task = Posterior(loaded, processor, params.task), params.task
    # Pictures may differ in size. If the prompts of a batch must have equal lengths, classify one picture at a time.
    size = 1 if posterior.wants_equal_lengths else params.evaluation.batch_size

    def ask(images: "Sequence[Image.Image]") -> "torch.Tensor":
        plain = posterior(encoding.to_device(encoding.encode(processor, task, list(images)), loaded))
        return plain if offsets is None else torch.from_numpy(prior.apply(plain.numpy(), offsets))

    for start in range(0, len(files), size):
        batch = [(file, _read(file)) for file in files[start : start + size]]
        images = [image for _, image in batch if not isinstance(image, str)]
        probabilities = iter(())
        if images:
            probabilities = chain.from_iterable(memory.in_parts(ask, images, emit))
        for file, image in batch:
            if isinstance(image, str):
                yield Classification(file, [], image)
                continue
            p, order = torch.sort(next(probabilities), descending=True, stable=True)
            labels = [task.labels[label] for label in order.tolist()]
            yield Classification(file, list(zip(labels, p.tolist(), strict=True)))


def _read(file: Path) -> "Image.Image | str":
    """Returns the picture, or an error message if it cannot be read."""
    try:
        return pictures.upright(pictures.read_file(file))
    except pictures.Unreadable as error:
        return str(error)


def prior_offsets(chosen: str | None, params: Params, adapter: str | None, emit: Emit) -> list[float] | None:
    """The offsets that correct the label prior, and a line about them; None without a correction.

    `chosen` is --prior: "none", a file predictions/NAME/test.json, or None for that of the evaluation of this model,
    which is skipped if it belongs to something else. Raises InputError if a chosen file has no prior that belongs here.
    """
    if chosen == "none":
        return None
    file = Path(chosen or f"predictions/{'final_eval' if adapter else 'structured_eval'}/test.json")
    if chosen is None and not file.exists():
        return None
    entry = prior.read(file)
    if entry is None:
        if chosen is None:
            return None
        raise InputError(f"--prior: {file}: has no label prior; name another file, or none")
    model = pins.resolved_model(params.model)
    other = prior.mismatch(entry, params.task, model, adapter)
    if other is not None and chosen is not None:
        raise InputError(f"--prior: {file}: its label prior belongs to another {other}; name another file, or none")
    if other is not None:
        emit(Log(f"the label prior in {file} belongs to another {other}; the probabilities are not corrected"))
        return None
    emit(Log(f"the label prior in {file} is corrected; --prior none shows the model's own probabilities"))
    return prior.offsets(entry)


def find(paths: list[Path]) -> list[Path]:
    """Returns the files in `paths`, and the pictures in the folders in `paths` and their subfolders.

    In a folder, files count as pictures by their suffix, whether or not they can be read; hidden files are left out.
    Raises InputError for a folder without pictures.
    """
    suffixes = pictures.suffixes()
    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        inside = [path / name for name in pins.visible_files(path) if Path(name).suffix.lower() in suffixes]
        if not inside:
            raise InputError(f"{path}: has no pictures in it")
        files += inside
    return files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", type=Path, metavar="IMAGE", help="a picture, or a folder of pictures")
    parser.add_argument("--model", metavar="NAME", help="configs/models/NAME.yaml (default: params.yaml's)")
    parser.add_argument("--task", metavar="NAME", help="configs/tasks/NAME.yaml (default: params.yaml's)")
    parser.add_argument("--adapter", metavar="FOLDER", help="a fine-tuned adapter, e.g. models/adapter (default: none)")
    parser.add_argument(
        "--prior",
        metavar="FILE",
        help="none: the model's own probabilities; or a predictions/NAME/test.json whose label prior is corrected "
        "(default: that of final_eval, without an adapter that of structured_eval)",
    )
    parser.add_argument(
        "--top", type=int, default=3, metavar="N", help="how many labels to show for each picture (default: 3)"
    )
    parser.add_argument(
        "--min-confidence",
        type=float,
        default=0.0,
        metavar="P",
        help="answer “none of these” if the most probable label has a probability below P (default: 0); thresholds for "
        "95 and 99 %% accuracy are in plots/final_eval/details.json",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one line of JSON for each picture; with answer: null for none of these",
    )


def main(arguments: argparse.Namespace) -> int:
    if arguments.top < 1:
        raise InputError(f"--top: {arguments.top}: should be at least 1")
    if not 0 <= arguments.min_confidence <= 1:
        raise InputError(f"--min-confidence: {arguments.min_confidence:g}: should be a probability, from 0 to 1")
    params = load_params()
    chosen = {"model": load_model(arguments.model)} if arguments.model else {}
    chosen |= {"task": load_task(arguments.task)} if arguments.task else {}
    files = find(arguments.paths)
    failed = 0

    def show(event: Event) -> None:
        if isinstance(event, Log):
            print(event.text, file=sys.stderr)

    params = params.model_copy(update=chosen)
    offsets = prior_offsets(arguments.prior, params, arguments.adapter, show)
    for found in classify(files, params, arguments.adapter, show, offsets):
        if found.error is not None:
            failed += 1
            print(f"error: {found.file}: {found.error}", file=sys.stderr)
            continue
        top = found.labels[: arguments.top]
        best, confidence = top[0]
        sure = confidence >= arguments.min_confidence
        if arguments.json:
            labels = [{"label": label, "probability": float(f"{p:.6g}")} for label, p in top]
            line = {"file": str(found.file), "answer": best if sure else None, "labels": labels}
            print(json.dumps(line, ensure_ascii=False), flush=True)
        else:
            shown = ", ".join(f"{label} {p:.1%}" for label, p in top)
            print(f"{found.file}: {shown}" if sure else f"{found.file}: none of these ({shown})", flush=True)
    return 1 if failed else 0
