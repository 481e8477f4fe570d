"""Writes the fine-tuned classifier's files for llama.cpp, once llama.cpp has given PyTorch's answers with them."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from vlm.config.errors import InputError
from vlm.config.events import Emit, Log, Progress
from vlm.config.params import Params
from vlm.data import json_files
from vlm.edge import card, gguf_files, merging, swift, verification
from vlm.edge.classifier import Classifier, NotExportable
from vlm.edge.llama import Llama
from vlm.evaluation import Evaluation, prior
from vlm.models import loading

if TYPE_CHECKING:
    import numpy as np

FOLDER = Path("models/edge")
_SWEEP = "sweep"  # in an exported folder: those of export.sweep, a folder for each
_UNAVAILABLE = "unavailable.json"
_FINAL_EVAL = Path("predictions/final_eval/test.json")
# What is compared with PyTorch: the conversion, without the error of a quantisation
_REFERENCE = ("F16", "F16")


@dataclass(frozen=True)
class Exported:
    """The size of the two GGUF files in bytes, and two comparisons with PyTorch on `samples` pictures.

    `difference` is the largest difference of a probability at F16, `changed` the number of labels that the types of the
    files change.
    """

    bytes: int
    difference: float
    samples: int
    changed: int

    @property
    def summary(self) -> str:
        """What the stage and the command say."""
        return (
            f"{self.bytes / 1e6:.3g} MB; at F16 no probability is further than {self.difference:.1g} from PyTorch's; "
            f"{self.changed} of {self.samples} labels change with these types"
        )


def require_exportable(params: Params) -> None:
    """Raises NotExportable if a package is missing here, or llama.cpp does not run models like this one."""
    for package in ("gguf", "xllamacpp"):
        try:
            import_module(package)
        except ImportError as error:
            raise NotExportable(
                f"the package {package} cannot be imported ({error}); `uv sync` installs it where there is a build of "
                "it for this kind of machine; then `dvc repro -f export`"
            ) from None
    config = loading.require_files(params.model, weights=False) / "config.json"
    gguf_files.require_supported(json.loads(config.read_text(encoding="utf-8")))


def prior_offsets(params: Params) -> list[float]:
    """The offsets with which final_eval corrected the label prior, see Classifier; empty if it corrected none.

    Raises InputError if predictions/final_eval/test.json is missing, or is of a run with another prior or other labels.
    """
    method = Evaluation.of(params, structured=True, adapter=params.final_eval.folder).prior
    if method == "none":
        return []
    if not _FINAL_EVAL.exists():
        raise InputError(f"{_FINAL_EVAL}: no such file; `dvc repro final_eval` writes it, `dvc pull` fetches it")
    entry = json_files.read(_FINAL_EVAL).get("prior") or {"method": "none", "probabilities": []}
    if entry["method"] != method or len(entry["probabilities"]) != len(params.task.labels):
        raise InputError(
            f"{_FINAL_EVAL}: prior: has the method {entry['method']} and {len(entry['probabilities'])} labels, and "
            f"final_eval.prior in params.yaml is {method}, with {len(params.task.labels)} labels; run "
            "`dvc repro final_eval`"
        )
    return prior.offsets(entry)


def write_unavailable(folder: Path, reason: str) -> None:
    """Leaves a note in `folder`, for the stages that follow, that there is nothing in it and why."""
    json_files.write(folder / _UNAVAILABLE, {"unavailable": reason})


def swept(folder: Path) -> list[Path]:
    """The folders of the other classifiers that were exported with the one in `folder`, named text+vision."""
    return sorted(folder.glob(f"{_SWEEP}/*+*"))


def unavailable_in(folder: Path) -> str | None:
    """The reason that `write_unavailable` has left in a folder, if any. Raises InputError without a folder."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; `dvc repro export` makes it, `dvc pull` fetches it")
    note = folder / _UNAVAILABLE
    return json_files.read(note)["unavailable"] if note.exists() else None


def export(
    params: Params,
    adapter: str,
    data: str,
    output: Path,
    types: tuple[str, str],
    offsets: Sequence[float] = (),
    sweep: Sequence[tuple[str, str]] = (),
    emit: Emit = lambda event: None,
) -> Exported:
    """Merges the adapter and writes a classifier with weights of `types` (text, vision) to the new folder `output`.

    The classifier corrects the label prior with `offsets`, see `prior_offsets`. Those with the types of `sweep` go to
    folders in it, see `swept`.

    Before that, llama.cpp has to give PyTorch's probabilities, corrected likewise, for pictures of the split `data` at
    F16, within 0.01.
    Exported classifiers do not cut pictures into tiles, whatever image.splitting in params.yaml is: with LFM2-VL's
    limits a large picture would have up to 2,800 image tokens instead of 256, which takes a phone ten times as long.

    `output` appears with all that is in it, or not at all. Raises InputError for what the user can correct, among it
    NotExportable for labels that llama.cpp cannot tell apart, or if it answers differently.
    """
    import numpy as np

    steps = len(sweep) + 4
    if output.exists():
        raise InputError(f"{output}: exists; name a new folder")
    images = merging.samples(data)
    with _temporary(output) as temporary:
        emit(Progress(0, steps, "step"))
        merged, _ = merging.merge(params, adapter, temporary / "merged", images)
        emit(Progress(1, steps, "step"))
        if loading.load_processor(merged, params.image).image_processor.do_image_splitting:
            emit(
                Log(
                    "warning: fine-tuning cut large pictures into tiles, and an exported classifier cuts none; "
                    "edge_eval measures what that changes; fine-tune with image.splitting: false to avoid it"
                )
            )
        whole = params.image.model_copy(update={"splitting": False})
        model, processor = loading.load(merged.model_copy(update={"dtype": "float32"}), whole)
        plain = merging.posteriors(model, processor, params.task, images).numpy()
        del model
        emit(Progress(2, steps, "step"))
        classifier = Classifier.of(params, processor, _weights_sha256(Path(adapter)), offsets)
        expected = np.stack([classifier.corrected(row) for row in plain])
        _write(temporary / "merged", temporary / "reference", _REFERENCE, classifier, len(images))
        difference = verification.verify(temporary / "reference", processor, params.task, images, expected)
        shutil.rmtree(temporary / "reference")
        emit(Progress(3, steps, "step"))
        new = temporary / "new"
        folders = {new: types} | {new / _SWEEP / "+".join(other): other for other in sweep}
        for number, (folder, own) in enumerate(folders.items()):
            _write(temporary / "merged", folder, own, classifier, len(images))
            emit(Progress(4 + number, steps, "step"))
        changed = _changed(new, images, expected)
        new.rename(output)
    size = sum(file.stat().st_size for file in output.glob("*.gguf"))
    return Exported(size, difference, len(images), changed)


def _write(merged: Path, folder: Path, types: tuple[str, str], classifier: Classifier, checked: int) -> None:
    """Writes all files of a classifier; `checked` is the number of pictures of the comparison with PyTorch."""
    folder.mkdir(parents=True)
    gguf_files.write(merged, folder, *types)
    classifier = classifier.with_files(folder, types)
    classifier.save(folder)
    (folder / "labels.gbnf").write_text(classifier.grammar(), encoding="utf-8")
    (folder / "Classifier.swift").write_text(swift.source(classifier), encoding="utf-8")
    (folder / "README.md").write_text(card.text(classifier, checked), encoding="utf-8")


def _changed(folder: Path, images: list, expected: "np.ndarray") -> int:
    """The number of pictures to which a classifier gives another label than PyTorch."""
    with Llama(folder) as llama:
        return sum(
            int(llama.posterior(image).argmax() != row.argmax()) for image, row in zip(images, expected, strict=True)
        )


@contextmanager
def _temporary(output: Path) -> Iterator[Path]:
    """A folder beside `output`, so that renaming works; removed at the end. A killed run's is removed first."""
    folder = output.with_name(f".{output.name}.tmp")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _weights_sha256(folder: Path) -> str:
    """The SHA-256 of the weights of an adapter, or of a whole model, as if several files were one."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as content:
            while block := content.read(2**20):
                digest.update(block)
    return digest.hexdigest()
