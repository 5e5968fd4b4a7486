"""The steps that compute numbers from a reading; measurements and checks refer to them by name.

A quantity of an empty label map is 0, never an error: the manifest's checks say what that means.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edge.steps.orientation import closest_axes, spacing_mm
from edge.steps.sample import Label, ModelOutputError, Quantity, Reading

Named = Annotated[int, Field(ge=0, le=255)]
Direction = Literal["LR", "AP", "IS"]
"""Of the patient: left to right, front to back, foot to head."""


def volumes(
    reading: Reading, *, quantities: Mapping[Quantity, Annotated[tuple[Label, ...], Field(min_length=1)]]
) -> Reading:
    """Volume of labels in ml, counted on the model's grid.

    Args:
        reading: a label map.
        quantities: name of each volume, and the label values that it counts together.
    """
    voxel_ml = abs(float(np.linalg.det(reading.sample.grid[:3, :3]))) / 1000
    # One pass a label over bytes: a histogram would first make eight of each.
    wanted = {label for labels in quantities.values() for label in labels}
    counts = {label: int(np.count_nonzero(reading.labels == label)) for label in wanted}
    return reading.with_quantities(
        {
            name: float(sum(counts[label] for label in set(labels))) * voxel_ml
            for name, labels in quantities.items()
        }
    )


def ratio(reading: Reading, *, quantity: Quantity, numerator: Quantity, denominator: Quantity) -> Reading:
    """One quantity divided by another; 0 where the second is 0.

    Args:
        reading: anything with both quantities.
        quantity: name of the ratio.
        numerator: a quantity of an earlier step.
        denominator: a quantity of an earlier step.
    """
    below = reading.quantities[denominator]
    return reading.with_quantities({quantity: reading.quantities[numerator] / below if below else 0.0})


def confidence(
    reading: Reading, *, quantity: Quantity, scores: Literal["logits", "probabilities"] = "logits"
) -> Reading:
    """Mean over the labelled voxels of the greatest class probability.

    Args:
        reading: scores of every class, and a label map.
        quantity: name of the mean, 0 to 1.
        scores: what the scores are at this point; logits go through a softmax first.
    """
    labelled = reading.labels > 0
    if not labelled.any():
        return reading.with_quantities({quantity: 0.0})
    chosen = np.stack([plane[labelled] for plane in reading.scores])
    greatest = chosen.max(axis=0)
    if scores == "logits":
        with np.errstate(over="ignore"):  # a difference beyond float32 is -inf here, and a probability of 0
            chosen -= greatest
        greatest = 1 / np.exp(chosen, out=chosen).sum(axis=0)
    return reading.with_quantities({quantity: float(greatest.mean(dtype=np.float64))})


def tissue_contrast(
    reading: Reading,
    *,
    quantity: Quantity,
    bright: Label,
    dark: Label,
    min_voxels: Annotated[int, Field(ge=1, le=1 << 27)] = 100,
) -> Reading:
    """Difference of two labels' mean values in the model's input, over the mean of their deviations.

    Args:
        reading: a label map.
        quantity: name of the contrast; negative when `dark` is the brighter one.
        bright: label expected to be brighter.
        dark: label expected to be darker.
        min_voxels: with this many voxels or fewer of either label the contrast is 0.
    """
    one, other = (_values(reading, label) for label in (bright, dark))
    contrast = 0.0
    if min(one.size, other.size) > min_voxels:
        spread = 0.5 * (one.std(dtype=np.float64) + other.std(dtype=np.float64)) + 1e-3
        contrast = float((one.mean(dtype=np.float64) - other.mean(dtype=np.float64)) / spread)
    return reading.with_quantities({quantity: contrast})


def extents(reading: Reading, *, quantities: Mapping[Quantity, Direction]) -> Reading:
    """Extent of the labelled part in mm: planes that hold a labelled voxel, times their distance.

    Args:
        reading: a label map.
        quantities: name of each extent, and the direction it runs in: the grid's axis that is
            closest to left to right (LR), front to back (AP) or foot to head (IS).
    """
    labelled = reading.labels > 0
    axes = dict(zip(("LR", "AP", "IS"), closest_axes(reading.sample.grid), strict=True))
    distance = spacing_mm(reading.sample.grid)
    found = {}
    for name, direction in quantities.items():
        axis = axes[direction]
        planes = labelled.any(axis=tuple(other for other in range(3) if other != axis))
        found[name] = float(np.count_nonzero(planes) * distance[axis])
    return reading.with_quantities(found)


def border_share(reading: Reading, *, quantity: Quantity) -> Reading:
    """Share of the labelled voxels that lie on the outermost voxels of the grid.

    Args:
        reading: a label map.
        quantity: name of the share, 0 to 1.
    """
    labelled = reading.labels > 0
    count = int(np.count_nonzero(labelled))
    within = int(np.count_nonzero(labelled[1:-1, 1:-1, 1:-1]))
    return reading.with_quantities({quantity: (count - within) / count if count else 0.0})


def class_probabilities(reading: Reading, *, quantities: Mapping[Quantity, Named]) -> Reading:
    """Name the probabilities of a whole-image model.

    Args:
        reading: probabilities (classes,), after `softmax` or `sigmoid` where the graph gives logits.
        quantities: name of each probability, and the index of its class.

    Raises:
        ModelOutputError: there is no such class, or its score is no probability.
    """
    found = {}
    for name, index in quantities.items():
        if index >= reading.scores.size:
            raise ModelOutputError(f"class_probabilities: class {index} of {reading.scores.size}")
        value = float(reading.scores.ravel()[index])
        if not -1e-6 <= value <= 1 + 1e-6:
            raise ModelOutputError(f"class_probabilities: {name} is {value:g}, must be 0 to 1")
        found[name] = min(1.0, max(0.0, value))
    return reading.with_quantities(found)


def _values(reading: Reading, label: int) -> NDArray[np.float32]:
    chosen: NDArray[np.float32] = reading.sample.values[reading.labels == label]
    return chosen
