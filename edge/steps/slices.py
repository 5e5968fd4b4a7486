"""The beginning of a list of steps, done to each slice when it arrives; and how the slices are joined.

A list may begin with steps of three kinds, and what follows them is done as always:

    pointwise   each voxel by itself: the same, slice by slice
    orient      moves voxels and changes none: it waits until the slices are joined
    separable   one of them, a matrix for each axis: the two axes within the slice on arrival, the
                one through the slices when they are joined

What comes out has the same bits as the steps done to the whole volume: each value is made by the
same operations in the same order. What is assumed of a slice before the others are known (which axes
its rows and columns become, the spacing) is its `key`; slices whose key is not the volume's are
not joined, and the volume is prepared whole.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from edge.steps import orientation
from edge.steps.orientation import spacing_mm as spacing_of
from edge.steps.resampling import Separable, axis_weights, through_slices, within_slice
from edge.steps.sample import Sample, check_size

Key = tuple[object, ...]
"""What was assumed of a slice."""


@dataclass(frozen=True)
class SliceWork:
    """What is done to slices of one size, orientation and spacing."""

    key: Key
    pointwise: tuple[Any, ...]
    down: sparse.csr_array | None
    across: sparse.csr_array | None

    def do(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """The part of the steps that one slice can have.

        Args:
            pixels: (rows, columns), finite, modality units; left as they are.
        """
        sample = Sample(pixels)
        for run in self.pointwise:
            sample = run(sample)
        if self.down is None or self.across is None:
            return sample.values
        return within_slice(np.ascontiguousarray(sample.values), self.down, self.across)


@dataclass(frozen=True)
class SlicePlan:
    """How a list of steps begins slice by slice."""

    pointwise: tuple[Any, ...]
    axes: str | None
    """Of the `orient` among them."""
    orient: Any
    separable: Separable | None
    parameters: Mapping[str, Any]
    """Of the separable step."""
    covered: int
    """Steps of the list that are done when the slices are joined."""

    def work(self, affine: NDArray[np.float64], shape: tuple[int, int]) -> SliceWork:
        """What is to be done to slices of this shape (rows, columns).

        Args:
            affine: (4, 4), (slice, row, column, 1) to LPS mm; of one slice, or of the volume.
            shape: rows and columns.

        Raises:
            OutOfScopeError: what it makes is too large.
        """
        if self.separable is None:
            return SliceWork(("as they are", *shape), self.pointwise, None, None)
        order, flips, spacing = self._turned(affine)
        places = [order.index(source) for source in (1, 2)]
        check_size(shape, "slice")
        down, across = (
            axis_weights(
                self.separable, voxels, spacing[axis], axis, dict(self.parameters), backward=flips[axis]
            )
            for voxels, axis in zip(shape, places, strict=True)
        )
        check_size((down.shape[0], across.shape[0]), "slice, resampled")
        key = (*shape, *[(axis, flips[axis], spacing[axis]) for axis in places])
        return SliceWork(key, self.pointwise, down, across)

    def join(
        self, slices: Sequence[NDArray[np.float32]], affine: NDArray[np.float64], shape: tuple[int, int, int]
    ) -> Sample:
        """The sample after the steps that are `covered`.

        Args:
            slices: in slice order, as `SliceWork.do` made them, all under the key of the volume's own work.
            affine: of the volume.
            shape: of the volume, (slices, rows, columns).

        Raises:
            OutOfScopeError: what the steps make is too large.
        """
        check_size(shape, "volume")
        if self.separable is None:
            sample = Sample(np.stack(slices), affine)
            turned: Sample = sample if self.orient is None else self.orient(sample)
            return turned
        order, flips, spacing = self._turned(affine)
        # The geometry alone: a view of one number, of the volume's shape.
        outline = Sample(np.broadcast_to(np.float32(0), shape), affine)
        if self.orient is not None:
            outline = self.orient(outline)
        made, inside = self.separable.grid(
            outline.values.shape, outline.grid, outline.inside, **self.parameters
        )
        places = [order.index(source) for source in range(3)]
        first = places[0]
        through = axis_weights(
            self.separable, shape[0], spacing[first], first, dict(self.parameters), backward=flips[first]
        )
        check_size((shape[0], *slices[0].shape), "resample, within the slices")
        values = through_slices(np.stack(slices), through, places)
        return dataclasses.replace(outline, values=values, affine=made, inside=inside)

    def _turned(self, affine: NDArray[np.float64]) -> tuple[list[int], list[bool], list[float]]:
        """For each axis of the sample: its source axis, whether it runs backward, its spacing in mm."""
        old = spacing_of(affine).tolist()
        if self.axes is None:
            return [0, 1, 2], [False] * 3, old
        order, flips = orientation.turned(affine, self.axes)
        return order, flips, [old[axis] for axis in order]
