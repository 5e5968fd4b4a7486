"""The steps that change a volume's voxel spacing, and their separable filter.

Each axis is one sparse matrix of a few weights a row, applied without copying the volume into
another axis order and without BLAS: the work is a few multiplications a voxel, and BLAS threads
on a shared machine cost more than they bring (99 ms instead of 60 on two busy cores; this: 20).

The two axes within the slices of the source go first, slice by slice, and the one through them
last: so the first part can be done to each slice when it arrives (`edge.steps.slices`), and gives the
same bits then.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import sparse

from edge.steps.orientation import spacing_mm as spacing_of
from edge.steps.sample import Box, OutOfScopeError, Sample, check_size

Spacing = Annotated[float, Field(ge=0.05, le=20)]
"""mm; finer or coarser than this is no volume of a patient."""


Filter = Literal["triangle", "linear"]
MAX_EDGE: Final = 4096
"""Voxels along one axis of a result; a matrix of one axis then takes a few hundred kilobytes."""


@dataclass(frozen=True)
class Separable:
    """A step that is one matrix for each axis: how to do it in two parts."""

    weights: Callable[..., sparse.csr_array]
    """(voxels, mm between them, index of the axis, parameters…) → the axis's matrix (voxels made, voxels)."""
    grid: Callable[..., tuple[NDArray[np.float64], Box | None]]
    """(shape, affine, field of view, parameters…) → affine and field of view of what is made."""


def resample(
    sample: Sample,
    *,
    spacing_mm: tuple[Spacing, Spacing, Spacing],
    filter: Filter = "triangle",  # noqa: A002 (the manifest's word)
) -> Sample:
    """Resample to a voxel spacing, outer corners aligned.

    Along each axis output voxel n sits at input index (n + 0.5) · new / old - 0.5, and the
    number of voxels is round(size · old / new). Beyond the edge the nearest voxels count.

    Args:
        sample: a volume.
        spacing_mm: distance of voxel centres along i, j, k, mm.
        filter: `triangle` averages over the larger of the two spacings when it reduces; `linear`
            interpolates between two voxels always.

    Raises:
        OutOfScopeError: the result would have more than `MAX_VOXELS`.
    """
    return _separably(RESAMPLE, sample, {"spacing_mm": spacing_mm, "filter": filter})


def conform(
    sample: Sample,
    *,
    size: Annotated[int, Field(ge=16, le=512)] = 256,
    spacing_mm: Spacing = 1.0,
) -> Sample:
    """Resample into a cube, trilinear: voxel (n - 1) // 2 of the volume becomes voxel (size - 1) // 2.

    Outside of the volume the cube is 0, and counts as inside the field of view (FreeSurfer's
    `mri_convert --conform` and nibabel's `conform`, order 1, do the same).

    Args:
        sample: a volume, with its axes already in the order wanted.
        size: voxels along each edge of the cube.
        spacing_mm: distance of voxel centres, mm.
    """
    return _separably(CONFORM, sample, {"size": size, "spacing_mm": spacing_mm})


def _resample_weights(
    voxels: int,
    old_mm: float,
    axis: int,
    *,
    spacing_mm: Sequence[float],
    filter: Filter,  # noqa: A002
) -> sparse.csr_array:
    ratio = spacing_mm[axis] / old_mm
    made = _resampled_size(voxels, ratio)
    return _triangle(voxels, made, ratio, max(1.0, ratio) if filter == "triangle" else 1.0)


def _resample_grid(
    shape: Sequence[int],
    affine: NDArray[np.float64],
    inside: Box | None,
    *,
    spacing_mm: Sequence[float],
    filter: Filter,  # noqa: A002, ARG001 (the parameters of the step)
) -> tuple[NDArray[np.float64], Box | None]:
    ratio = np.asarray(spacing_mm) / spacing_of(affine)
    sizes = [_resampled_size(n, r) for n, r in zip(shape, ratio.tolist(), strict=True)]
    check_size(sizes, "resample")
    made = affine.copy()
    made[:3, :3] *= ratio
    made[:3, 3] += affine[:3, :3] @ (0.5 * ratio - 0.5)
    return made, scaled_box(inside, sizes, ratio.tolist())


def _resampled_size(voxels: int, ratio: float) -> int:
    made = max(1, round(voxels / ratio))
    if made > MAX_EDGE:
        raise OutOfScopeError(f"resample: {made} voxels along one axis, allowed {MAX_EDGE}")
    return made


def _conform_weights(
    voxels: int,
    old_mm: float,
    axis: int,  # noqa: ARG001 (all axes alike)
    *,
    size: int,
    spacing_mm: float,
) -> sparse.csr_array:
    steps = np.arange(size, dtype=np.float64) - (size - 1) // 2
    return _linear_or_zero(voxels, size, steps * (spacing_mm / old_mm) + (voxels - 1) // 2)


def _conform_grid(
    shape: Sequence[int],
    affine: NDArray[np.float64],
    inside: Box | None,  # noqa: ARG001 (outside counts as inside here)
    *,
    size: int,
    spacing_mm: float,
) -> tuple[NDArray[np.float64], Box | None]:
    middle = [(n - 1) // 2 for n in shape]
    ratio = spacing_mm / spacing_of(affine)
    made = affine.copy()
    made[:3, :3] *= ratio
    made[:3, 3] += affine[:3, :3] @ (np.asarray(middle) - (size - 1) // 2 * ratio)
    return made, None


RESAMPLE: Final = Separable(_resample_weights, _resample_grid)
CONFORM: Final = Separable(_conform_weights, _conform_grid)


def scaled_box(inside: Box | None, sizes: Sequence[int], ratio: Sequence[float]) -> Box | None:
    """The field of view on a grid `ratio` times as coarse: the voxels whose centre lies within it."""
    if inside is None:
        return None
    return tuple(
        (min(n, max(0, math.ceil(a / r - 0.5))), min(n, max(0, math.floor(b / r - 0.5) + 1)))
        for (a, b), n, r in zip(inside, sizes, ratio, strict=True)
    )


def _triangle(n_in: int, n_out: int, ratio: float, half_width: float) -> sparse.csr_array:
    """The matrix (n_out, n_in) of a triangle filter, each row summing to 1."""
    centre = (np.arange(n_out) + 0.5) * ratio - 0.5
    reach = math.ceil(half_width)
    column = np.floor(centre).astype(np.int64)[:, None] + np.arange(-reach, reach + 2)
    weight = np.clip(1 - np.abs(column - centre[:, None]) / half_width, 0, None)
    weight[(column < 0) | (column >= n_in)] = 0
    empty = weight.sum(1) == 0  # only the last row, when round() made one voxel more than fits
    column[empty, 0], weight[empty, 0] = n_in - 1, 1
    weight /= weight.sum(1, keepdims=True)
    return _matrix(weight, column, n_in)


def _linear_or_zero(n_in: int, n_out: int, position: NDArray[np.float64]) -> sparse.csr_array:
    """The matrix (n_out, n_in) of linear interpolation at `position`; an empty row outside."""
    position = np.round(position, 9)  # or the edge voxel is lost to the last bit of a direction cosine
    first = np.floor(position)
    share = position - first
    column = first.astype(np.int64)[:, None] + np.arange(2)
    weight = np.stack([1 - share, share], axis=1)
    weight[(position < 0) | (position > n_in - 1)] = 0
    return _matrix(weight.reshape(n_out, 2), column, n_in)


def _matrix(weight: NDArray[np.float64], column: NDArray[np.int64], n_in: int) -> sparse.csr_array:
    used = weight != 0
    starts = np.concatenate([[0], np.cumsum(used.sum(1))])
    return sparse.csr_array(
        (weight[used].astype(np.float32), column[used], starts), shape=(len(weight), n_in)
    )


def _separably(step: Separable, sample: Sample, parameters: dict[str, Any]) -> Sample:
    """Do a step whole: within the slices, as they lie in memory, then through them."""
    values, shape = sample.values, sample.values.shape
    affine, inside = step.grid(shape, sample.grid, sample.inside, **parameters)
    spacing = spacing_of(sample.grid).tolist()
    order = sorted(range(3), key=lambda axis: -abs(values.strides[axis]))
    backward = [values.strides[axis] < 0 for axis in range(3)]
    through, down, across = (
        axis_weights(step, shape[axis], spacing[axis], axis, parameters, backward=backward[axis])
        for axis in order
    )
    stored = values[tuple(slice(None, None, -1 if flip else 1) for flip in backward)].transpose(order)
    check_size((stored.shape[0], across.shape[0], down.shape[0]), "resample, within the slices")
    planes = np.empty((stored.shape[0], across.shape[0], down.shape[0]), np.float32)
    for plane, made in zip(np.ascontiguousarray(stored), planes, strict=True):
        made[...] = within_slice(plane, down, across)
    made = through_slices(planes, through, order)
    return dataclasses.replace(sample, values=made, affine=affine, inside=inside)


def axis_weights(
    step: Separable, voxels: int, old_mm: float, axis: int, parameters: dict[str, Any], *, backward: bool
) -> sparse.csr_array:
    """The matrix of one axis, for voxels as they lie in memory.

    Args:
        step: whose.
        voxels: along the axis.
        old_mm: distance of their centres.
        axis: index of the axis in the sample.
        parameters: of the step.
        backward: whether the voxels lie in memory from the last to the first.
    """
    weights = step.weights(voxels, old_mm, axis, **parameters)
    # As a matrix of its own: reversed columns in place of reversed voxels, each row's weights in their order.
    return sparse.csr_array(weights[:, ::-1]) if backward else weights


def within_slice(
    plane: NDArray[np.float32], down: sparse.csr_array, across: sparse.csr_array
) -> NDArray[np.float32]:
    """One slice (rows, columns) with both its axes resampled: (columns made, rows made)."""
    return np.asarray(across @ np.ascontiguousarray((down @ plane).T))


def through_slices(
    planes: NDArray[np.float32], through: sparse.csr_array, order: Sequence[int]
) -> NDArray[np.float32]:
    """The last axis.

    Args:
        planes: (slices, columns made, rows made), of `within_slice`.
        through: the matrix of the axis across the slices.
        order: index in the sample of the axes across slices, rows and columns of the source.

    Returns:
        A view with the axes of the sample.
    """
    check_size((through.shape[0], *planes.shape[1:]), "resample, through the slices")
    made = (through @ planes.reshape(len(planes), -1)).reshape(-1, *planes.shape[1:])
    return made.transpose(np.argsort([order[0], order[2], order[1]]))
