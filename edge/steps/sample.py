"""What flows through the steps: a `Sample` before the model runs, a `Reading` after it.

Owns the two states, their limits, and the errors of the steps; computes nothing.

Voxel indices are (i, j, k), in whatever axis order the steps so far have made; the affine
always maps (i, j, k, 1) to the patient frame in mm, where L, P, S grow to the patient's left,
posterior and superior (PS3.3 §C.7.6.2.1.1).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Final, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

MAX_VOXELS: Final = 1 << 27
"""512³, 512 MiB as float32: what any step may make of a study; 8 times the largest grid in use (256³)."""

Box = tuple[tuple[int, int], ...]
"""For each axis the first index and the one after the last."""
Quantity = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,47}$")]
"""Name of a number that a postprocessing step computes; measurements and checks refer to it."""
Label = Annotated[int, Field(ge=1, le=255)]
"""A value of the label map; 0 is the background."""
Percentile = Annotated[float, Field(ge=0, le=100)]
"""0 is the least value, 100 the greatest; linear between two ranks."""


class OutOfScopeError(Exception):
    """The input is beyond what the model's steps can take: the study is declined with this reason."""


class ModelOutputError(Exception):
    """The model's output is not what its manifest says (shape, type, not a number): the model's fault."""


@dataclass(frozen=True)
class Sample:
    """A model input in the making; arrays are never written to after they are made."""

    values: NDArray[np.float32]
    """A volume (i, j, k), or an image (rows, columns) or (channels, rows, columns)."""
    affine: NDArray[np.float64] | None = None
    """Shape (4, 4), voxel index to LPS mm; None for an image without geometry."""
    inside: Box | None = None
    """The part within the field of view; the rest is padding. None: all of it."""
    photometric_interpretation: str = ""
    """(0028,0004) of an image."""
    bits_stored: int = 16
    """(0028,0101) of an image."""

    @property
    def grid(self) -> NDArray[np.float64]:
        """The affine of a volume.

        Raises:
            RuntimeError: this is an image without geometry (the pipeline lets no volume step near it).
        """
        if self.affine is None:
            raise RuntimeError("a volume step was given an image without geometry")
        return self.affine

    def seen(self) -> NDArray[np.float32]:
        """The values within the field of view.

        Raises:
            OutOfScopeError: there are none.
        """
        values = self.values
        if self.inside is not None:
            values = values[tuple(slice(first, end) for first, end in self.inside)]
        if not values.size:
            raise OutOfScopeError("nothing of the volume lies within the box that the model looks at")
        return values


@dataclass(frozen=True)
class Reading:
    """What has been made of a model's output so far."""

    scores: NDArray[np.float32]
    """(classes, i, j, k) on the grid of `sample`, or (classes,) of a whole image; logits or probabilities."""
    sample: Sample
    """What the model saw."""
    source_shape: tuple[int, ...]
    """Shape of the source: (slices, rows, columns), or (rows, columns)."""
    source_affine: NDArray[np.float64] | None
    """Voxel index (slice, row, column, 1) of the source to LPS mm; None for an image."""
    label_map: NDArray[np.uint8] | None = None
    """(i, j, k) on the grid of `sample`."""
    source_label_map: NDArray[np.uint8] | None = None
    """The label map on the source grid (slices, rows, columns)."""
    quantities: Mapping[str, float] = field(default_factory=dict)

    @property
    def labels(self) -> NDArray[np.uint8]:
        """The label map on the grid of `sample`.

        Raises:
            RuntimeError: no step has made one (the pipeline refuses such a manifest).
        """
        if self.label_map is None:
            raise RuntimeError("a step that needs a label map came before the step that makes it")
        return self.label_map

    def with_quantities(self, found: Mapping[str, float]) -> Self:
        """This reading with more numbers in it."""
        return type(self)(**{**self.__dict__, "quantities": {**self.quantities, **found}})


def check_size(shape: Sequence[int], what: str) -> None:
    """Refuse to allocate more than any study needs.

    Raises:
        OutOfScopeError: more than `MAX_VOXELS`.
    """
    count = 1
    for size in shape:
        count *= int(size)
    if count > MAX_VOXELS:
        sizes = " x ".join(str(int(size)) for size in shape)
        raise OutOfScopeError(f"{what}: {sizes} = {count} voxels, allowed {MAX_VOXELS}")
