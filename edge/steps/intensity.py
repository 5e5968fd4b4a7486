"""The steps that change values and neither shape nor geometry.

Padding never counts in what they look at, and stays 0.
"""

import dataclasses
from typing import Annotated, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from edge.steps.percentile import percentiles
from edge.steps.sample import OutOfScopeError, Percentile, Sample


def _ascending(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] >= ends[1]:
        raise ValueError("the first end must be less than the second")
    return ends


Over = Literal["inside", "positive"]
"""`inside`: every voxel within the field of view; `positive`: those of them above 0."""
Means = Annotated[tuple[float, ...], Field(min_length=1, max_length=16)]
Deviations = Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1, max_length=16)]
Range = Annotated[tuple[float, float], AfterValidator(_ascending)]
SMALLEST_RANGE: Final = 1e-6
"""A flat image is divided by this, not by 0."""


def clip(sample: Sample, *, lower: float | None = None, upper: float | None = None) -> Sample:
    """Limit every value; a limit that is not given does not limit.

    Args:
        sample: a volume or an image.
        lower: smaller values become this, in the units of the values (Hounsfield units for CT).
        upper: greater values become this.
    """
    return _with(sample, _clipped(sample, lower, upper))


def clip_percentile(
    sample: Sample,
    *,
    lower: Percentile | None = None,
    upper: Percentile | None = None,
    over: Over = "inside",
) -> Sample:
    """Limit every value to two percentiles of the values; one that is not given does not limit.

    Args:
        sample: a volume or an image.
        lower: %, smaller values become it.
        upper: %, greater values become it.
        over: the voxels whose percentiles are taken.
    """
    bounds = [percent for percent in (lower, upper) if percent is not None]
    found = iter(percentiles(_chosen(sample, over), bounds))
    low = None if lower is None else next(found)
    high = None if upper is None else next(found)
    return _with(sample, _clipped(sample, low, high))


def rescale_percentile(sample: Sample, *, lower: Percentile = 1.0, upper: Percentile = 99.5) -> Sample:
    """Map two percentiles of the field of view to 0 and 1 and clip; padding becomes 0.

    Args:
        sample: a volume or an image.
        lower: %, becomes 0.
        upper: %, becomes 1.
    """
    low, high = percentiles(sample.seen(), (lower, upper))
    values = sample.values - np.float32(low)
    values /= np.float32(max(high - low, SMALLEST_RANGE))
    np.clip(values, 0, 1, out=values)
    return _with(sample, values)


def rescale_range(
    sample: Sample,
    *,
    target: tuple[float, float],
    source: Range | None = None,
    whole: bool = False,
) -> Sample:
    """Map one range of values linearly to another, without clipping.

    Args:
        sample: a volume or an image.
        target: what the ends of the range become; the first may be the greater.
        source: the range; not given: from the least to the greatest value in the field of view.
        whole: round to whole numbers, halves to even.
    """
    if source is None:
        seen = sample.seen()
        low, high = float(seen.min()), float(seen.max())
    else:
        low, high = source
    # Dividing, then multiplying, keeps exact ratios exact: half of the range becomes half of the target.
    values = (sample.values - np.float32(low)) / np.float32(max(high - low, SMALLEST_RANGE))
    values *= np.float32(target[1] - target[0])
    values += np.float32(target[0])
    if whole:
        np.rint(values, out=values)
    return _with(sample, values)


def normalise(sample: Sample, *, mean: Means, std: Deviations) -> Sample:
    """Subtract a mean and divide by a standard deviation, per channel.

    Args:
        sample: a volume, or an image; with more than one mean, (channels, rows, columns).
        mean: of each channel or one for all, in the units of the values.
        std: of each channel or one for all, in the same units.
    """
    return _with(sample, (sample.values - _per_channel(sample, mean)) / _per_channel(sample, std))


def standardise(sample: Sample, *, over: Over = "inside") -> Sample:
    """Subtract the mean of the values and divide by their standard deviation (z-score).

    Args:
        sample: a volume or an image.
        over: the voxels whose mean and deviation are taken.
    """
    chosen = _chosen(sample, over)
    mean, deviation = float(chosen.mean(dtype=np.float64)), float(chosen.std(dtype=np.float64))
    values = (sample.values - np.float32(mean)) / np.float32(max(deviation, SMALLEST_RANGE))
    return _with(sample, values)


def _clipped(sample: Sample, lower: float | None, upper: float | None) -> NDArray[np.float32]:
    low = -np.inf if lower is None else lower
    high = np.inf if upper is None else upper
    return np.clip(sample.values, np.float32(low), np.float32(high))


def _per_channel(sample: Sample, numbers: tuple[float, ...]) -> NDArray[np.float32]:
    wanted = np.asarray(numbers, np.float32)
    return wanted if wanted.size == 1 else wanted.reshape(-1, *[1] * (sample.values.ndim - 1))


def _chosen(sample: Sample, over: Over) -> NDArray[np.float32]:
    seen = sample.seen()
    if over == "positive":
        seen = seen[seen > 0]
        if not seen.size:
            raise OutOfScopeError("no voxel is above 0")
    return seen


def _with(sample: Sample, values: NDArray[np.float32]) -> Sample:
    """The sample with new values (an array of our own): 0 wherever it has padding."""
    for axis, (first, end) in enumerate(sample.inside or ()):
        before = (slice(None),) * axis
        values[(*before, slice(0, first))] = 0
        values[(*before, slice(end, None))] = 0
    return dataclasses.replace(sample, values=values)
