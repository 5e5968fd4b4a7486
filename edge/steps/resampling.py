"""The steps that change a volume's voxel spacing, and their separable filter.

Each axis is one sparse matrix of a few weights a row, applied without copying the volume into
another axis order and without BLAS: the work is a few multiplications a voxel, and BLAS threads
on a shared machine cost more than they bring (99 ms instead of 60 on two busy cores; this: 20).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import sparse

from edge.steps.orientation import spacing_mm as spacing_of
from edge.steps.sample import Box, Sample, check_size

Spacing = Annotated[float, Field(ge=0.05, le=20)]
"""mm; finer or coarser than this is no volume of a patient."""


def resample(
    sample: Sample,
    *,
    spacing_mm: tuple[Spacing, Spacing, Spacing],
    filter: Literal["triangle", "linear"] = "triangle",  # noqa: A002 (the manifest's word)
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
    old = spacing_of(sample.grid)
    ratio = np.asarray(spacing_mm) / old
    sizes = [max(1, round(n / r)) for n, r in zip(sample.values.shape, ratio.tolist(), strict=True)]
    check_size(sizes, "resample")
    weights = [
        _triangle(n_in, n_out, r, max(1.0, r) if filter == "triangle" else 1.0)
        for n_in, n_out, r in zip(sample.values.shape, sizes, ratio.tolist(), strict=True)
    ]
    affine = sample.grid.copy()
    affine[:3, :3] *= ratio
    affine[:3, 3] += sample.grid[:3, :3] @ (0.5 * ratio - 0.5)
    inside = scaled_box(sample.inside, sizes, ratio.tolist())
    return dataclasses.replace(sample, values=_apply(weights, sample.values), affine=affine, inside=inside)


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
    old = spacing_of(sample.grid)
    middle = [(n - 1) // 2 for n in sample.values.shape]
    new_middle = (size - 1) // 2
    ratio = spacing_mm / old
    weights = [
        _linear_or_zero(n, size, (np.arange(size) - new_middle) * r + m)
        for n, r, m in zip(sample.values.shape, ratio.tolist(), middle, strict=True)
    ]
    affine = sample.grid.copy()
    affine[:3, :3] *= ratio
    affine[:3, 3] += sample.grid[:3, :3] @ (np.asarray(middle) - new_middle * ratio)
    return dataclasses.replace(sample, values=_apply(weights, sample.values), affine=affine, inside=None)


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


def _apply(weights: list[sparse.csr_array], values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each axis of `values` multiplied by its matrix; the result is a view in the same axis order."""
    backward = [stride < 0 for stride in values.strides]
    order = sorted(range(3), key=lambda axis: -abs(values.strides[axis]))
    flat = values[tuple(slice(None, None, -1 if flip else 1) for flip in backward)].transpose(order)
    work = np.ascontiguousarray(flat)  # as the slices lie in memory: no copy for a volume from a series
    in_order = [weights[axis][:, ::-1] if backward[axis] else weights[axis] for axis in order]
    # Memory order: (a, b, c) → (A, b, c) → (A, B, c) → (A, c, B) → (A, C, B)
    first, second, third = in_order
    check_size((first.shape[0], *work.shape[1:]), "resample, first axis")
    check_size((first.shape[0], second.shape[0], work.shape[2]), "resample, second axis")
    work = (first @ work.reshape(work.shape[0], -1)).reshape(-1, *work.shape[1:])
    work = _along_second(second, work)
    work = _along_second(third, np.ascontiguousarray(work.transpose(0, 2, 1)))
    back = np.argsort([order[0], order[2], order[1]])
    return work.transpose(back)


def _along_second(matrix: sparse.csr_array, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """(a, b, c) → (a, B, c): the matrix repeated down the diagonal, in one product."""
    a, b, c = values.shape
    n_out = matrix.shape[0]
    columns = (matrix.indices[None].astype(np.int64) + b * np.arange(a)[:, None]).ravel()
    starts = np.concatenate(
        [[0], (matrix.indptr[None, 1:].astype(np.int64) + matrix.nnz * np.arange(a)[:, None]).ravel()]
    )
    repeated = sparse.csr_array((np.tile(matrix.data, a), columns, starts), shape=(a * n_out, a * b))
    product: NDArray[np.float32] = repeated @ values.reshape(a * b, c)
    return product.reshape(a, n_out, c)
