"""The steps that cut a box out of a volume, or pad it to one.

All of them move the affine with the first voxel and keep account of what is padding.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edge.steps.percentile import percentiles
from edge.steps.sample import OutOfScopeError, Percentile, Sample, check_size

Edge = Annotated[int, Field(ge=1, le=1024)]
"""Voxels along one edge of a box."""
Count = Annotated[int, Field(ge=0, le=1 << 20)]


def crop_head_box(
    sample: Sample,
    *,
    shape: tuple[Edge, Edge, Edge],
    headroom: Count = 6,
    head_height: Count = 85,
    foreground_level: Annotated[float, Field(ge=0, le=1)] = 0.12,
    lower: Percentile = 1.0,
    upper: Percentile = 99.5,
    min_slice: Count = 150,
    min_plane: Count = 60,
) -> Sample:
    """Cut a box of fixed shape that holds the head: its end above the top, its middle on the head's.

    Foreground is what lies above lower + foreground_level · (upper - lower). The top is the
    highest axial slice with at least `min_slice` foreground voxels; the box ends `headroom`
    voxels above it. To the right and to the front the box is centred on the foreground of the
    `head_height` slices below the top. Outside of the volume the box is 0 and counts as padding.

    Args:
        sample: a volume with axes RAS and isotropic voxels (the defaults are for 2 mm).
        shape: of the box, voxels along R, A, S.
        headroom: slices wanted above the top of the head.
        head_height: slices below the top that are looked at to centre the box.
        foreground_level: share of the range between the two percentiles.
        lower: percentile that counts as dark, %.
        upper: percentile that counts as bright, %.
        min_slice: foreground voxels that make an axial slice part of the head.
        min_plane: the same for a sagittal or coronal plane.
    """
    values = sample.values
    dark, bright = percentiles(sample.seen(), (lower, upper))
    foreground = values > dark + foreground_level * (bright - dark)
    per_slice = _count_along(foreground, 2)
    slices = np.flatnonzero(per_slice >= min_slice)
    top = int(slices[-1]) if slices.size else values.shape[2] - 1
    head = foreground[:, :, max(0, top - head_height + 1) : top + 1]
    start = []
    for axis in (0, 1):
        planes = np.flatnonzero(_count_along(head, axis) >= min_plane)
        middle = (planes[0] + planes[-1] + 1) / 2 if planes.size else values.shape[axis] / 2
        start.append(math.floor(middle - shape[axis] / 2 + 0.5))
    return _cut(sample, [*start, top + 1 + headroom - shape[2]], shape)


def crop_foreground(
    sample: Sample, *, above: float, margin: Annotated[int, Field(ge=0, le=256)] = 0
) -> Sample:
    """Cut the smallest box that holds every voxel above a value, and a margin around it.

    The margin ends at the volume's own border.

    Args:
        sample: a volume.
        above: a voxel belongs to the box when its value is greater.
        margin: voxels added on each side.

    Raises:
        OutOfScopeError: no voxel is above the value.
    """
    foreground = sample.values > above
    start, shape = [], []
    for axis, size in enumerate(foreground.shape):
        others = tuple(other for other in range(3) if other != axis)
        planes = np.flatnonzero(foreground.any(axis=others))
        if not planes.size:
            raise OutOfScopeError(f"crop_foreground: no voxel is above {above:g}")
        first, end = max(0, int(planes[0]) - margin), min(size, int(planes[-1]) + 1 + margin)
        start.append(first)
        shape.append(end - first)
    return _cut(sample, start, shape)


def crop_or_pad(sample: Sample, *, shape: tuple[Edge, Edge, Edge]) -> Sample:
    """Cut or pad each axis evenly on both sides; an odd voxel is cut or added at the end.

    Padding is 0 and does not count as inside the field of view.

    Args:
        sample: a volume.
        shape: wanted, voxels along i, j, k.
    """
    start = [
        (n - wanted) // 2 if n >= wanted else -((wanted - n) // 2)
        for n, wanted in zip(sample.values.shape, shape, strict=True)
    ]
    return _cut(sample, start, shape)


def _cut(sample: Sample, start: Sequence[int], shape: Sequence[int]) -> Sample:
    """The box that begins at voxel `start` (which may lie outside); padding is 0."""
    check_size(shape, "crop")
    values = np.zeros(tuple(shape), np.float32)
    known = sample.inside or tuple((0, size) for size in sample.values.shape)
    source, target, inside = [], [], []
    for first, length, size, (seen_from, seen_to) in zip(
        start, shape, sample.values.shape, known, strict=True
    ):
        begin, end = max(0, first), max(0, first, min(size, first + length))
        source.append(slice(begin, end))
        target.append(slice(begin - first, end - first))
        begin, end = max(begin, seen_from), min(end, seen_to)
        inside.append((begin - first, max(begin, end) - first))
    values[tuple(target)] = sample.values[tuple(source)]
    affine = sample.grid.copy()
    affine[:3, 3] += sample.grid[:3, :3] @ np.asarray(start, np.float64)
    return dataclasses.replace(sample, values=values, affine=affine, inside=tuple(inside))


def _count_along(foreground: NDArray[np.bool_], axis: int) -> NDArray[np.int64]:
    """Number of true voxels in each plane across `axis`."""
    others = tuple(other for other in range(3) if other != axis)
    return np.asarray(np.count_nonzero(foreground, axis=others), np.int64)
