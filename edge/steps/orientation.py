"""The step that turns a volume's axes towards the patient's; no value changes.

Implements the patient frame of PS3.3 §C.7.6.2.1.1 for the letters L, R, P, A, S, I.
"""

import dataclasses
from typing import Annotated, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from edge.steps.sample import Sample

DIRECTIONS: Final = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "S": (2, 1), "I": (2, -1)}
"""Where each letter points: axis of the patient frame (LPS) and sign."""


def _three_axes(axes: str) -> str:
    if len(axes) != 3 or {DIRECTIONS.get(letter, (9, 0))[0] for letter in axes} != {0, 1, 2}:
        raise ValueError("must be one letter each of L or R, P or A, S or I, such as RAS")
    return axes


Axes = Annotated[str, AfterValidator(_three_axes), Field(examples=["RAS", "LIA"])]
"""Where the indices i, j, k grow to: `RAS`, `LIA`, …"""


def orient(sample: Sample, *, axes: Axes) -> Sample:
    """Permute and flip the axes to the closest order; oblique volumes keep their residual rotation.

    Args:
        sample: a volume.
        axes: where i, j, k grow to, one letter each: `RAS` is to the patient's right, anterior, superior.
    """
    affine = sample.grid
    order, flips = turned(affine, axes)
    values = sample.values.transpose(order)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    to_old = np.zeros((4, 4))
    to_old[3, 3] = 1
    for new, (old, flip) in enumerate(zip(order, flips, strict=True)):
        to_old[old, new] = -1 if flip else 1
        to_old[old, 3] = sample.values.shape[old] - 1 if flip else 0
    inside = sample.inside
    if inside is not None:
        inside = tuple(
            (size - inside[old][1], size - inside[old][0]) if flip else inside[old]
            for old, flip, size in zip(order, flips, values.shape, strict=True)
        )
    return dataclasses.replace(sample, values=values, affine=affine @ to_old, inside=inside)


def turned(affine: NDArray[np.float64], axes: str) -> tuple[list[int], list[bool]]:
    """For each new axis the old one that it is made of, and whether it runs the other way."""
    frame_axes, signs = zip(*(DIRECTIONS[letter] for letter in axes), strict=True)
    voxel_axis = closest_axes(affine)
    order = [voxel_axis[axis] for axis in frame_axes]
    flips = [
        bool(np.sign(affine[axis, voxel]) != sign)
        for axis, voxel, sign in zip(frame_axes, order, signs, strict=True)
    ]
    return order, flips


def closest_axes(affine: NDArray[np.float64]) -> tuple[int, int, int]:
    """For each axis of the patient frame (L, P, S) the voxel axis that runs closest to it."""
    left = np.abs(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))
    voxel_axis = [0, 0, 0]
    for _ in range(3):  # the strongest pair first, then without its row and column
        frame, voxel = divmod(int(np.argmax(left)), 3)
        voxel_axis[frame] = voxel
        left[frame, :] = -1
        left[:, voxel] = -1
    return voxel_axis[0], voxel_axis[1], voxel_axis[2]


def spacing_mm(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance of voxel centres along i, j, k."""
    return np.asarray(np.linalg.norm(affine[:3, :3], axis=0))
