"""The steps for plain images, and the two that resize to a fixed shape.

`resize` is Pillow's own: vendors train on 8-bit images resized by it (torchvision
does), and its rounding between the two passes shows in the third decimal of a probability.
"""

import dataclasses
from typing import Annotated

import numpy as np
from PIL import Image as PillowImage
from pydantic import Field

from edge.steps.crop import Edge
from edge.steps.intensity import SMALLEST_RANGE
from edge.steps.percentile import percentiles
from edge.steps.resampling import scaled_box
from edge.steps.sample import OutOfScopeError, Percentile, Sample, check_size

Size = Annotated[int, Field(ge=1, le=4096)]


def invert_monochrome1(sample: Sample) -> Sample:
    """Turn MONOCHROME1 (the least value is white, PS3.3 §C.7.6.3.1.2) into MONOCHROME2.

    A value v becomes 2^bits - 1 - v; other images stay as they are.

    Args:
        sample: an image.
    """
    if sample.photometric_interpretation != "MONOCHROME1":
        return sample
    values = np.float32((1 << sample.bits_stored) - 1) - sample.values
    return dataclasses.replace(sample, values=values, photometric_interpretation="MONOCHROME2")


def window_percentile(sample: Sample, *, lower: Percentile = 1.0, upper: Percentile = 99.0) -> Sample:
    """Window an image of more than 8 bits to 8 bits; one of 8 bits or fewer stays as it is.

    Args:
        sample: an image.
        lower: %, this and darker becomes 0.
        upper: %, this and brighter becomes 255.
    """
    if sample.bits_stored <= 8:
        return sample
    low, high = percentiles(sample.values, (lower, upper))
    values = (sample.values - np.float32(low)) * np.float32(255 / max(high - low, SMALLEST_RANGE))
    values = np.rint(np.clip(values, 0, 255))
    return dataclasses.replace(sample, values=values, bits_stored=8)


def resize(sample: Sample, *, shape: tuple[Size, Size]) -> Sample:
    """Resize an 8-bit image, bilinear with antialiasing as in Pillow; the aspect ratio is not kept.

    Args:
        sample: an image (rows, columns) of values 0 to 255; they are rounded to whole numbers.
        shape: wanted, (rows, columns).

    Raises:
        OutOfScopeError: a value is beyond 8 bits (`window_percentile` comes first).
    """
    low, high = float(sample.values.min()), float(sample.values.max())
    if low < 0 or high > 255:
        raise OutOfScopeError(f"resize: takes values 0 to 255, got {low:g} to {high:g}")
    grey = PillowImage.fromarray(np.rint(sample.values).astype(np.uint8))
    resized = grey.resize((shape[1], shape[0]), PillowImage.Resampling.BILINEAR)
    return dataclasses.replace(sample, values=np.asarray(resized, np.float32))


def resize_nearest(sample: Sample, *, shape: tuple[Edge, Edge, Edge]) -> Sample:
    """Resize a volume to a fixed shape, outer corners aligned: the voxel that holds the new centre counts.

    It is what PyTorch calls nearest-exact; the voxels' proportions are not kept.

    Args:
        sample: a volume.
        shape: wanted, voxels along i, j, k.

    Raises:
        OutOfScopeError: the result would have more than `MAX_VOXELS`.
    """
    check_size(shape, "resize_nearest")
    ratio = np.asarray(sample.values.shape) / np.asarray(shape)
    values = sample.values
    for axis, (n_in, n_out) in enumerate(zip(sample.values.shape, shape, strict=True)):
        index = np.floor((np.arange(n_out) + 0.5) * (n_in / n_out)).astype(np.int64)
        values = np.take(values, np.minimum(index, n_in - 1), axis=axis)
    affine = sample.grid.copy()
    affine[:3, :3] *= ratio
    affine[:3, 3] += sample.grid[:3, :3] @ (0.5 * ratio - 0.5)
    inside = scaled_box(sample.inside, shape, ratio.tolist())
    return dataclasses.replace(sample, values=values, affine=affine, inside=inside)


def stack_channels(sample: Sample, *, count: Annotated[int, Field(ge=1, le=16)] = 3) -> Sample:
    """Repeat a grey image into (channels, rows, columns), as models trained on RGB want it.

    Args:
        sample: an image (rows, columns).
        count: number of channels.
    """
    return dataclasses.replace(sample, values=np.repeat(sample.values[None], count, axis=0))
