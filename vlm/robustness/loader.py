"""Reads, corrupts and preprocesses pictures. Imported only by a running job, because it imports numpy and SciPy."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlm.config.task import Task
from vlm.evaluation import batching
from vlm.models import encoding, patches
from vlm.robustness.answers import CLEAN
from vlm.robustness.corruptions import corrupted

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from transformers import BatchFeature, ProcessorMixin


class CorruptedLoader:
    """The model's inputs for chosen samples of a split under several conditions, (corruption, severity).

    Numbers its rows by sample and then condition: row r is sample r // n under condition r % n, for n conditions. It
    can be pickled, for worker processes.
    """

    def __init__(
        self,
        data: str,
        samples: Sequence[int],
        conditions: Sequence[tuple[str, int]],
        processor: "ProcessorMixin",
        task: Task,
        dtype: "torch.dtype | None" = None,
    ) -> None:
        """`samples` are row numbers of the split `data`; see vlm.models.encoding.encode for `dtype`.

        Raises InputError if there is no such file.
        """
        self._split = batching.Loader(data, processor, task)
        self._samples = samples
        self._conditions = conditions
        self._processor = processor
        self._task = task
        self._dtype = dtype

    def __call__(self, rows: Sequence[int], empty: patches.Empty | None = None) -> "BatchFeature":
        """The inputs for `rows`, left-padded, on the CPU; see vlm.models.encoding.encode for `empty`."""
        pairs = [divmod(row, len(self._conditions)) for row in rows]
        samples = sorted({sample for sample, _ in pairs})
        read = dict(zip(samples, self._split.reader.rows(self._samples[sample] for sample in samples), strict=True))
        images = {sample: batching.decoded(row.image) for sample, row in read.items()}
        pictures = [self._picture(images[sample], read[sample].id, self._conditions[n]) for sample, n in pairs]
        return encoding.encode(self._processor, self._task, pictures, self._dtype, empty)

    def lengths(self, rows: Sequence[int]) -> list[int]:
        """The number of tokens in the prompts of `rows`; no corruption changes a picture's size."""
        of_samples = self._split.lengths(self._samples)
        return [of_samples[row // len(self._conditions)] for row in rows]

    @staticmethod
    def _picture(image: "Image.Image", id_: str, condition: tuple[str, int]) -> "Image.Image":
        return image if condition == CLEAN else corrupted(image, *condition, id_)
