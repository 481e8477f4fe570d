"""Caches a frozen vision tower's outputs: computed once per picture, read in every epoch and validation pass.

Without LoRA in the tower they never change. They are stored on disk, with as many patches for every tile as the largest
tile of the splits has.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.config.errors import InputError
from vlm.config.events import Emit, Log, Progress
from vlm.config.task import Task
from vlm.data import dataset
from vlm.evaluation import batching
from vlm.models import encoding, memory, patches

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState
    from transformers import BatchFeature, PreTrainedModel, ProcessorMixin
    from transformers.modeling_outputs import BaseModelOutputWithPooling

# Pictures that go through the tower together. A constant, because which ones do affects the last digits of a result.
_AT_ONCE = 16
_TOWER = "vision_tower"  # its attribute name in LFM2-VL and most other models


class Plan:
    """The prompts and feature sizes of splits, found without computing any features."""

    def __init__(self, data: Sequence[str], processor: "ProcessorMixin", task: Task) -> None:
        self.sizes = {path: dataset.image_sizes(path) for path in data}
        # By size, on which alone they depend. `patches` are those of the largest tile, None without a mask of patches.
        self.prompts, self.tiles, self.patches = {}, {}, {}
        for size in dict.fromkeys(size for sizes in self.sizes.values() for size in sizes):
            inputs = encoding.blank(processor, task, size)
            self.patches[size] = inputs["pixel_values"].shape[1] if patches.padded(inputs) else None
            self.tiles[size] = len(inputs.pop("pixel_values"))
            # Arrays, because each tensor that is sent to a data loader worker would take a file descriptor.
            self.prompts[size] = {name: value.numpy() for name, value in inputs.items()}

    def count(self, split: str) -> int:
        """The number of tiles in all pictures of a split."""
        return sum(self.tiles[size] for size in self.sizes[split])

    def tile_shape(self, example: "torch.Tensor") -> tuple[int, int]:
        """Patches and hidden size of the tower's stored output for a tile, given an `example` as in Features."""
        return max(most or example.shape[1] for most in self.patches.values()), example.shape[2]


class Features:
    """The model's inputs for the rows of a split, with the tower's outputs in place of pixels; see `precompute`.

    It can be sent to data loader workers, however they are started: each maps the file of outputs itself.
    """

    def __init__(self, data: str, plan: Plan, padding: int, file: Path, example: "torch.Tensor") -> None:
        """`file` holds the outputs, which may be filled in later.

        `example` is the tower's output for some picture, (tiles, patches, hidden size), and has the dtype of all.
        """
        self._prompts = plan.prompts
        self._patches = plan.patches
        self._sizes = plan.sizes[data]
        self._first = [0, *accumulate(plan.tiles[size] for size in self._sizes)]
        self._padding = padding
        self._file = file
        self._shape = (self._first[-1], *plan.tile_shape(example))
        self._dtype = example.dtype

    @cached_property
    def tiles(self) -> "torch.Tensor":
        """The tower's outputs for the split, (tiles, patches, hidden size); what is written to them is in the file."""
        import torch

        return torch.from_file(str(self._file), True, prod(self._shape), dtype=self._dtype).view(self._shape)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "tiles"}

    def __len__(self) -> int:
        return len(self._sizes)

    def lengths(self, rows: Sequence[int] | None = None) -> list[int]:
        """The number of tokens in the prompts of `rows` (by default all), including the picture's."""
        chosen = range(len(self)) if rows is None else rows
        return [self._prompts[self._sizes[row]]["input_ids"].shape[1] for row in chosen]

    def span(self, row: int) -> slice:
        """The range of a row's tiles."""
        return slice(self._first[row], self._first[row + 1])

    def row(self, row: int) -> dict[str, "torch.Tensor"]:
        """The inputs for one row, as a batch of one."""
        import torch

        size = self._sizes[row]
        prompt = {name: torch.from_numpy(array) for name, array in self._prompts[size].items()}
        return {**prompt, "pixel_values": self.tiles[self.span(row), : self._patches[size]]}

    def collate(self, rows: Sequence[dict[str, "torch.Tensor"]]) -> "BatchFeature":
        """Joins rows into one batch, padded as the processor does it."""
        return encoding.joined(rows, self._padding)

    def __call__(self, rows: Sequence[int], empty: patches.Empty | None = None) -> "BatchFeature":
        """The inputs for `rows`, as vlm.evaluation.batching.Loader returns them except for the pixels."""
        return self.collate([self.row(row) for row in rows])


def precompute(
    loaded: "PreTrainedModel",
    processor: "ProcessorMixin",
    task: Task,
    splits: Sequence[str],
    directory: Path,
    budget: float,
    emit: Emit,
) -> dict[str, Features] | None:
    """Computes the features of `splits` into `directory`, and makes the model take them in place of pixels.

    The result depends only on the model and the splits, unless memory runs out, which makes the batches smaller; with
    several processes (see vlm.training.job), each computes its part. Features that an earlier run has finished in
    `directory` are reused. Returns None and leaves the model unchanged if the features take more than `budget` GB or
    the model does not allow it: it has no vision tower by that name, or does not continue from the tower's last hidden
    state. Raises InputError if the disk has too little free space.
    """
    from accelerate import PartialState

    processes = PartialState()
    plan = Plan(splits, processor, task)
    first = encoding.to_device(batching.Loader(splits[0], processor, task)([0]), loaded)
    example, projected = _tower_output(loaded, first)
    if example is None or not _replaceable(loaded, first, example, projected):
        emit(Log("this model's image features cannot be cached; they are recomputed in every epoch"))
        return None
    tile = prod(plan.tile_shape(example)) * example.itemsize
    gigabytes = sum(plan.count(split) for split in splits) * tile / 1e9
    if gigabytes > budget:
        emit(Log(f"image features take {gigabytes:.1f} GB, more than finetune.cache_image_features; not cached"))
        return None
    complete = directory / "complete"
    finished = complete.exists()
    processes.wait_for_everyone()
    if not finished:
        _make_room(directory, gigabytes, processes)
    padding = processor.tokenizer.pad_token_id
    found = {
        split: Features(split, plan, padding, directory / f"{number}.bin", example)
        for number, split in enumerate(splits)
    }
    if not finished:
        loaders = {split: batching.Loader(split, processor, task, loaded.dtype) for split in splits}
        _fill(found, loaded, loaders, processes, emit)
        for file in directory.glob("*.bin"):
            with file.open("rb") as written:
                os.fsync(written)  # before the features are marked as complete
    processes.wait_for_everyone()
    complete.touch()
    # The tower itself stays, so that checkpoints of the whole model have its weights.
    getattr(loaded.base_model, _TOWER).forward = _pass_through
    return found


def _make_room(directory: Path, gigabytes: float, processes: "PartialState") -> None:
    """Empties the directory. Raises InputError if its disk has less than `gigabytes` free."""
    if processes.is_main_process:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
    processes.wait_for_everyone()
    free = shutil.disk_usage(directory).free / 1e9
    if gigabytes > free:
        raise InputError(
            f"params.yaml: finetune.cache_image_features: {gigabytes:.1f} GB of image features do not fit on the disk "
            f"of {directory}, which has {free:.1f} GB free; 0 recomputes them in every epoch"
        )


def _fill(
    found: dict[str, Features],
    loaded: "PreTrainedModel",
    loaders: dict[str, batching.Loader],
    processes: "PartialState",
    emit: Emit,
) -> None:
    """Computes this process's part of the features of all splits."""
    from vlm.evaluation.feed import computed

    done, total = 0, sum(len(features) for features in found.values())
    for split, features in found.items():
        load = loaders[split]
        chunks = [range(start, min(start + _AT_ONCE, len(features))) for start in range(0, len(features), _AT_ONCE)]

        def encode(rows: range, inputs: "dict[str, torch.Tensor]", features: Features = features) -> None:
            output, _ = _tower_output(loaded, inputs)
            stored = features.tiles[features.span(rows[0]).start : features.span(rows[-1]).stop]
            stored[:, : output.shape[1]] = output.cpu()

        own = chunks[processes.process_index :: processes.num_processes]
        for chunk, _ in computed(encode, load, own, loaded, emit):
            done += len(chunk)
            emit(Progress(min(done * processes.num_processes, total), total, "picture encoded"))


def _tower_output(
    loaded: "PreTrainedModel", inputs: "Mapping[str, torch.Tensor]"
) -> "tuple[torch.Tensor | None, torch.Tensor | None]":
    """The tower's last hidden state for a batch, (tiles, patches, hidden size), and the language model's image inputs.

    The state is None if it has another shape; both are None if there is no tower.
    """
    import torch

    tower = getattr(loaded.base_model, _TOWER, None)
    if tower is None:
        return None, None
    outputs: list[Any] = []
    hook = tower.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    try:
        with torch.inference_mode():
            projected = _project(loaded, inputs)
    finally:
        hook.remove()
    state = outputs[0].last_hidden_state if len(outputs) == 1 else None
    fits = state is not None and state.ndim == 3 and len(state) == len(inputs["pixel_values"])
    return state if fits else None, projected


def _project(loaded: "PreTrainedModel", inputs: "Mapping[str, torch.Tensor]") -> "torch.Tensor":
    """The pictures' features as the language model receives them."""
    import torch

    return torch.cat(list(loaded.get_image_features(**encoding.picture_inputs(inputs)).pooler_output))


def _replaceable(
    loaded: "PreTrainedModel",
    inputs: "Mapping[str, torch.Tensor]",
    state: "torch.Tensor",
    projected: "torch.Tensor",
) -> bool:
    """Whether the model computes the same from the tower's last hidden state as from the pixels: `projected`."""
    import torch

    tower = getattr(loaded.base_model, _TOWER)
    with torch.inference_mode():
        tower.forward = _pass_through
        try:
            found = _project(loaded, {**inputs, "pixel_values": state})
        except (TypeError, ValueError, AttributeError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and memory.is_out_of_memory(error):
                raise
            return False  # it needs pixels, or other layers of the tower
        finally:
            del tower.forward  # the class's own again
    return torch.equal(found, projected)


def _pass_through(pixel_values: "torch.Tensor", **_: Any) -> "BaseModelOutputWithPooling":
    """A tower's forward that returns its input: the tower's outputs, passed to it as pixels."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    return BaseModelOutputWithPooling(last_hidden_state=pixel_values)
