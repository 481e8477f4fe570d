"""Finds near duplicates within and across splits: the same picture encoded again, resized, or slightly cropped.

Pictures with similar perceptual hashes (ImageHash) and mean colours are compared in detail: one is stretched and
shifted until it fits the other best, and what then differs is measured. A hash alone cannot tell a slightly cropped
copy from another photo of the same kind of thing, as docs/audit.md shows.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from vlm.audit.pictures import THUMBNAIL, Look
from vlm.audit.suspects import Suspect
from vlm.config.events import Emit, Progress

# Candidates. A copy that was cropped by 5 % at each side keeps within these limits (measured on car_badges).
_NEAREST = 12  # pictures by hash that a picture is compared with
_BITS = 72  # of 256 that may differ
_COLOUR = 20  # levels of 255 that the mean of a colour channel may differ

_CROP = 0.12  # of a side: how far a picture may be stretched or shifted to fit the other
_STEPS = 8
_PAIRS_AT_ONCE = 256
_ROUGHLY = 0.4  # pairs that differ by more at half the size, which is quick to compute, are not compared in full

# Fractions of the variance that differ. Copies have at most the first; photos of one kind of thing rarely as little.
_LIMIT = 0.15
# Where all pictures look alike, such as drawn digits, a copy must differ by much less than the picture's tenth most
# similar one does, unless the two are the same but for their encoding. So of more than ten copies of one picture, those
# that were cropped may be missed. In pictures smaller than the thumbnails, every other difference is too small to tell.
_OTHERS, _RATIO, _SAME = 10, 0.15, 0.01


def near_duplicates(looks: Sequence[Look], emit: Emit) -> list[Suspect]:
    """One suspect for each picture that is a copy of an earlier one in `looks`, which is its `other`.

    Put the splits that should stay as they are first in `looks`. Pictures without coarse detail, such as blank ones,
    are left out, because their thumbnails are alike.
    """
    usable = [i for i, look in enumerate(looks) if not look.plain]
    pairs = _candidates([looks[i] for i in usable], emit)
    pairs = np.array(usable, int)[pairs]  # (pairs, 2), indices into looks, the first the smaller one
    differing = np.concatenate([np.empty(0), *_in_parts(looks, pairs, emit)])
    of_picture = defaultdict(list)
    for (i, j), difference in zip(pairs.tolist(), differing.tolist(), strict=True):
        of_picture[i].append(difference)
        of_picture[j].append(difference)
    # A picture -> the first one that it is a copy of, and how much they differ
    found: dict[int, tuple[int, float]] = {}
    for (i, j), difference in zip(pairs.tolist(), differing.tolist(), strict=True):
        small = any(min(looks[k].width, looks[k].height) < THUMBNAIL for k in (i, j))
        limit = 0.0 if small else min(_LIMIT, *(_stands_out(of_picture[k]) for k in (i, j)))
        if difference <= max(limit, _SAME):
            found.setdefault(j, (i, difference))  # pairs are sorted, so the first one comes first
    return [_suspect(looks[j], looks[i], difference) for j, (i, difference) in found.items()]


def _suspect(copy: Look, other: Look, difference: float) -> Suspect:
    a, b = copy.sample, other.sample
    other = f"{b.split}/{b.id}"
    reason = f"Nearly the same picture as {other}"
    if a.label != b.label:
        reason += f", which is labelled {b.label!r}"
    elif a.split != b.split:
        reason += ", which is in another split"
    return Suspect(a, "near_duplicate", 1 - difference, f"{reason}.", other=other)


def _stands_out(differing: list[float]) -> float:
    """The largest difference that still stands out from a picture's other pairs."""
    return _RATIO * sorted(differing)[_OTHERS - 1] if len(differing) >= _OTHERS else 1.0


def _candidates(looks: Sequence[Look], emit: Emit) -> np.ndarray:
    """Pairs of indices, (pairs, 2), the smaller index first: pictures with similar hashes and mean colours."""
    if len(looks) < 2:
        return np.empty((0, 2), int)
    bits = np.packbits([look.hash for look in looks], axis=1).view(np.uint64)  # (pictures, 4)
    colours = np.array([look.thumbnail.mean((0, 1)) for look in looks])
    nearest, pairs = min(_NEAREST, len(looks) - 1), set()
    for i in range(len(looks)):
        distance = np.bitwise_count(bits ^ bits[i]).sum(1).astype(int)
        distance[np.abs(colours - colours[i]).max(1) > _COLOUR] = _BITS + 1
        distance[i] = _BITS + 1
        for j in np.argpartition(distance, nearest - 1)[:nearest].tolist():
            if distance[j] <= _BITS:
                pairs.add((min(i, j), max(i, j)))
    return np.array(sorted(pairs), int).reshape(-1, 2)


def _in_parts(looks: Sequence[Look], pairs: np.ndarray, emit: Emit) -> list[np.ndarray]:
    """How much the pictures of each pair differ, see `difference`; in parts, (pairs,) in all."""
    parts = []
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):
        first, second = (
            np.stack([looks[i].thumbnail for i in column]).astype(np.float32)
            for column in pairs[start : start + _PAIRS_AT_ONCE].T
        )
        part = _either_way(_halved(first), _halved(second))
        close = part < _ROUGHLY
        part[close] = _either_way(first[close], second[close])
        parts.append(part)
        emit(Progress(min(start + _PAIRS_AT_ONCE, len(pairs)), len(pairs), "similar pair"))
    return parts


def _either_way(pictures: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.minimum(difference(pictures, others), difference(others, pictures))


def _halved(pictures: np.ndarray) -> np.ndarray:
    count, side = pictures.shape[:2]
    return pictures.reshape(count, side // 2, 2, side // 2, 2, 3).mean((2, 4))


def difference(pictures: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The fraction of the variance of `others` by which they differ from `pictures` that were fitted to them, (pairs,).

    Both are (pairs, side, side, 3). A picture is stretched and shifted, by up to 12 % of its side, along both
    axes (B. D. Lucas and T. Kanade, IJCAI 1981: Gauss-Newton steps on the squared difference of the brightness). Only
    the part that both show counts.
    """
    count, side = pictures.shape[:2]
    grey, target = pictures.mean(-1), others.mean(-1)
    offsets = np.arange(side, dtype=np.float32) - (side - 1) / 2  # from the centre, in pixels
    warp = np.zeros((count, 4), np.float32)  # stretch and shift along x, then along y
    bounds = np.tile(np.array([_CROP, _CROP * side / 2], np.float32), 2)
    best = np.full(count, np.inf)
    for step in range(_STEPS + 1):
        columns, in_columns = _resampling(offsets, warp[:, 0:1], warp[:, 1:2])
        rows, in_rows = _resampling(offsets, warp[:, 2:3], warp[:, 3:4])
        shown = in_rows[:, :, None] & in_columns[:, None, :]  # (pairs, side, side)
        best = np.minimum(best, _unexplained(pictures, others, rows, columns, shown))
        if step == _STEPS:
            return best
        fitted = rows @ grey @ columns.transpose(0, 2, 1)
        down, across = np.gradient(fitted, axis=(1, 2))
        slopes = np.stack([across * offsets, across, down * offsets[:, None], down], -1)  # by each number of warp
        slopes = (slopes * shown[..., None]).reshape(count, side * side, 4)
        error = ((target - fitted) * shown).reshape(count, side * side, 1)
        normal = slopes.transpose(0, 2, 1) @ slopes
        # A little damping keeps the step finite where a picture has no edges in one direction.
        damping = 1e-3 * (1 + np.trace(normal, axis1=1, axis2=2) / 4)
        normal += np.eye(4, dtype=np.float32) * damping[:, None, None]
        warp = np.clip(warp + np.linalg.solve(normal, slopes.transpose(0, 2, 1) @ error)[..., 0], -bounds, bounds)


def _resampling(offsets: np.ndarray, stretch: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Matrices (pairs, side, side) that resample an axis linearly, and which of its new pixels the picture shows."""
    side = len(offsets)
    wanted = (1 + stretch) * offsets + shift + (side - 1) / 2
    inside = (wanted >= -0.5) & (wanted <= side - 0.5)
    wanted = wanted.clip(0, side - 1)
    return np.maximum(0, 1 - np.abs(wanted[:, :, None] - np.arange(side, dtype=np.float32))), inside


def _unexplained(
    pictures: np.ndarray, others: np.ndarray, rows: np.ndarray, columns: np.ndarray, shown: np.ndarray
) -> np.ndarray:
    """The squared difference over the squared deviation of `others` from their mean colour, in the part shown."""
    counted = shown.sum((1, 2)).clip(1)
    error = deviation = np.zeros(len(pictures))
    for channel in range(3):
        fitted = rows @ pictures[..., channel] @ columns.transpose(0, 2, 1)
        other = others[..., channel] * shown
        mean = other.sum((1, 2)) / counted
        error = error + (((fitted - others[..., channel]) * shown) ** 2).sum((1, 2))
        deviation = deviation + (((others[..., channel] - mean[:, None, None]) * shown) ** 2).sum((1, 2))
    # Four levels of 255 are the least deviation that is taken for more than noise.
    return error / np.maximum(deviation, counted * 3 * 4.0)
