"""Pixels with their geometry: a volume of parallel slices, or one plain image.

Array order is the Standard's: (slice, row, column). The affine maps a voxel index
(slice, row, column, 1) to the patient frame in mm: L, P, S grow to the patient's
left, posterior, superior (PS3.3 §C.7.6.2.1.1).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Volume:
    """One series as a regular grid of voxels in the patient frame."""

    voxels: NDArray[np.float32]
    """Shape (slices, rows, columns); modality units (rescale applied): Hounsfield units for CT."""
    affine: NDArray[np.float64]
    """Shape (4, 4): (slice, row, column, 1) to LPS mm."""
    frame_of_reference_uid: str
    sop_instance_uids: tuple[str, ...]
    """One for each slice, in the order of the first axis."""
    decoder: str = "native"
    """Decoder and version that made the pixels, for the provenance."""
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Image:
    """One frame that has no place in the patient frame (CR, DX, SC)."""

    pixels: NDArray[np.float32]
    """Shape (rows, columns), modality units; MONOCHROME1 is not inverted here."""
    photometric_interpretation: str
    bits_stored: int
    sop_instance_uid: str
    decoder: str = "native"
