"""The steps from a model's scores to a label map, and back to the grid of the source."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage, special

from edge.steps.sample import Label, ModelOutputError, Quantity, Reading, Sample

DECIMALS: Final = 6
"""Of a grid index: rounds away what an affine's arithmetic leaves, so that ties are ties everywhere."""
_IN_PLANE: Final = 32  # of a slice's rows and columns, where the grids are oblique: 1,024 points a slice


def softmax(reading: Reading) -> Reading:
    """Turn logits into probabilities that sum to 1 over the classes."""
    with np.errstate(over="ignore"):  # a difference beyond float32 is -inf here, and a probability of 0
        return dataclasses.replace(reading, scores=special.softmax(reading.scores, axis=0))


def sigmoid(reading: Reading) -> Reading:
    """Turn each logit into a probability of its own."""
    return dataclasses.replace(reading, scores=special.expit(reading.scores))


def argmax(reading: Reading) -> Reading:
    """Label each voxel with the index of its greatest score; of equal ones the first."""
    scores = reading.scores
    if not 1 <= len(scores) <= 256:
        raise ModelOutputError(f"argmax: {len(scores)} classes, allowed 1 to 256")
    labels = np.zeros(scores.shape[1:], np.uint8)
    best = scores[0]
    for index in range(1, len(scores)):  # whole planes: a tenth of the time of numpy's argmax
        better = scores[index] > best
        np.copyto(labels, np.uint8(index), where=better)
        best = np.maximum(best, scores[index])
    return dataclasses.replace(reading, label_map=labels)


def threshold(
    reading: Reading, *, at: float, channel: Annotated[int, Field(ge=0, le=255)] = 0, label: Label = 1
) -> Reading:
    """Label each voxel whose score in one channel is at or above a value.

    Args:
        reading: scores, as probabilities or logits.
        at: least score that counts, in the units of the scores.
        channel: index of the class.
        label: value that the voxels get.

    Raises:
        ModelOutputError: there is no such channel.
    """
    if channel >= len(reading.scores):
        raise ModelOutputError(f"threshold: channel {channel} of {len(reading.scores)}")
    labels = np.where(reading.scores[channel] >= at, np.uint8(label), np.uint8(0))
    return dataclasses.replace(reading, label_map=labels)


def largest_component(reading: Reading, *, quantity: Quantity | None = None) -> Reading:
    """Keep the largest connected part of the foreground (all labels together), clear the rest.

    Two voxels are connected when they share a face (6 neighbours).

    Args:
        reading: a label map.
        quantity: name for the share of the foreground that was kept, 0 to 1; 1 where there is none.
    """
    labels, share = reading.labels, 1.0
    box = occupied(labels > 0)
    if box is not None:
        within = labels[box]
        parts, count = ndimage.label(within > 0)
        if count > 1:
            sizes = np.bincount(parts.ravel())
            sizes[0] = 0
            share = float(sizes.max() / sizes.sum())
            labels = np.zeros_like(labels)
            labels[box] = np.where(parts == sizes.argmax(), within, np.uint8(0))
    reading = dataclasses.replace(reading, label_map=labels)
    return reading if quantity is None else reading.with_quantities({quantity: share})


def to_source_grid(reading: Reading) -> Reading:
    """Carry the label map to the voxels of the source: each takes the label of the nearest grid voxel.

    The way is the exact inverse of what the preprocessing did: source index → mm → grid index. A
    source voxel that lies midway between two grid voxels takes the one with the lower index; one
    outside of the grid is background.

    Raises:
        RuntimeError: the source has no geometry (the pipeline refuses such a manifest).
    """
    if reading.source_affine is None:
        raise RuntimeError("to_source_grid was given an image without geometry")
    linear, offset = _to_grid(reading.sample, reading.source_affine)
    strongest = _aligned(linear, reading.source_shape)
    if strongest is not None:
        found = _separable(reading.labels, linear, offset, strongest, reading.source_shape)
    else:
        found = ndimage.affine_transform(
            reading.labels, linear, offset, reading.source_shape, order=0, mode="grid-constant", cval=0
        )
    return dataclasses.replace(reading, source_label_map=found)


def coverage(
    sample: Sample, source_shape: Sequence[int], source_affine: NDArray[np.float64]
) -> tuple[float, tuple[tuple[int, int], ...]]:
    """How much of a volume lies in the model's grid: what `to_source_grid` could give a label at all.

    Args:
        sample: what the model is given; its last three dimensions are the grid.
        source_shape: (slices, rows, columns).
        source_affine: shape (4, 4), voxel index of the source to LPS mm.

    Returns:
        The share of the source's voxels whose nearest grid voxel exists, 0 to 1, and the runs of slices
        with none such, each as first and last index. Where the grids are oblique to each other, 32 by 32
        voxels stand for those of a slice.
    """
    linear, offset = _to_grid(sample, source_affine)
    grid_shape = sample.values.shape[-3:]
    if (strongest := _aligned(linear, source_shape)) is not None:
        share = 1.0
        seen = np.ones(source_shape[0], np.bool_)
        for grid, axis in enumerate(strongest.tolist()):
            position = np.arange(source_shape[axis]) * linear[grid, axis] + offset[grid]
            inside = _within(position, grid_shape[grid])
            share *= float(inside.mean())
            if axis == 0:
                seen = inside
            elif not inside.any():
                seen = np.zeros_like(seen)
                break
        return share if seen.any() else 0.0, _runs(~seen)
    samples = [np.linspace(0, size - 1, min(size, _IN_PLANE)) for size in source_shape[1:]]
    points = np.meshgrid(np.arange(source_shape[0]), *samples, indexing="ij", sparse=True)
    hit = np.ones((source_shape[0], len(samples[0]), len(samples[1])), np.bool_)
    for grid in range(3):
        position = sum((points[axis] * linear[grid, axis] for axis in range(3)), offset[grid])
        hit &= _within(np.asarray(position), grid_shape[grid])
    return float(hit.mean()), _runs(~hit.reshape(len(hit), -1).max(axis=1))


def occupied(mask: NDArray[np.bool_]) -> tuple[slice, ...] | None:
    """The smallest box that holds every true element; None when there is none."""
    box = []
    for axis in range(mask.ndim):
        planes = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        if not planes.size:
            return None
        box.append(slice(int(planes[0]), int(planes[-1]) + 1))
    return tuple(box)


def _to_grid(
    sample: Sample, source_affine: NDArray[np.float64]
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Source index to grid index: a matrix and an offset."""
    to_grid = np.linalg.solve(sample.grid, source_affine)
    return to_grid[:3, :3], to_grid[:3, 3]


def _aligned(linear: NDArray[np.floating], source_shape: Sequence[int]) -> NDArray[np.intp] | None:
    """For each grid axis the source axis that it follows; None where the grids are oblique."""
    strongest = np.abs(linear).argmax(axis=1)
    rest = np.abs(linear).copy()
    rest[np.arange(3), strongest] = 0
    reach = float((rest @ np.asarray(source_shape, np.float64)).max())
    return strongest if sorted(strongest.tolist()) == [0, 1, 2] and reach < 10**-DECIMALS else None


def _within(position: NDArray[np.floating], size: int) -> NDArray[np.bool_]:
    """Whether the nearest grid index exists; the same rounding as `_separable`."""
    index = np.ceil(np.round(position, DECIMALS) - 0.5)
    return np.asarray((index >= 0) & (index < size), np.bool_)


def _runs(mask: NDArray[np.bool_]) -> tuple[tuple[int, int], ...]:
    """First and last index of each run of true values."""
    steps = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return tuple((int(a), int(b) - 1) for a, b in zip(steps[::2], steps[1::2], strict=True))


def _separable(
    labels: NDArray[np.uint8],
    linear: NDArray[np.floating],
    offset: NDArray[np.floating],
    source_axis: NDArray[np.intp],
    source_shape: tuple[int, ...],
) -> NDArray[np.uint8]:
    """Nearest neighbour where each grid axis follows one source axis: an index vector an axis."""
    work = labels.transpose(np.argsort(source_axis))  # grid axes in the order of the source's
    grid_axis = np.argsort(source_axis)
    parts: list[slice] = []
    for axis in (2, 1, 0):  # the innermost first: the later, larger copies move whole rows and planes
        grid = int(grid_axis[axis])
        position = np.arange(source_shape[axis]) * linear[grid, axis] + offset[grid]
        index = np.ceil(np.round(position, DECIMALS) - 0.5).astype(np.int64)
        hits = np.flatnonzero((index >= 0) & (index < work.shape[axis]))
        first, end = (int(hits[0]), int(hits[-1]) + 1) if hits.size else (0, 0)
        parts.insert(0, slice(first, end))
        work = np.take(work, index[first:end], axis=axis)
    found = np.zeros(source_shape, np.uint8)
    found[tuple(parts)] = work
    return found
