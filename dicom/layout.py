"""How the values of Pixel Data lie in memory, checked before any of it is allocated.

Owns the checks of the attributes of the Image Pixel Module (PS3.3 §C.7.6.3) against
each other and against `DecodeLimits`, and the meaning of the bits of one stored value
(PS3.5 §8.1.1). Reads no file and knows no codec.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dicom.errors import DecodeError, HeaderError, UnsupportedError
from dicom.header import InstanceHeader

MAX_DECODED_BYTES: Final = 2 * 1024**3
"""2 GiB of stored values: the largest multi-frame objects that intake takes (tomosynthesis, 4-D CT)."""
MAX_FRAME_BYTES: Final = 256 * 1024**2
"""256 MiB for one frame: twice a whole-body scanogram or an uncompressed 8192² RGB image."""
MAX_FRAMES: Final = 65_536
"""Frames in one instance: more than an hour of cine; bounds the loop over them."""


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """What one instance may cost; checked from its header, before memory is taken."""

    max_bytes: int = MAX_DECODED_BYTES
    max_frame_bytes: int = MAX_FRAME_BYTES
    max_frames: int = MAX_FRAMES


@dataclass(frozen=True, slots=True)
class PixelLayout:
    """The Image Pixel Module of one instance, found consistent."""

    frames: int
    rows: int
    columns: int
    samples: int
    photometric_interpretation: str
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    planar: bool
    """Planar Configuration (0028,0006): all of one sample, then all of the next; native data only."""

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """(rows, columns), or (rows, columns, samples) for colour."""
        shape = (self.rows, self.columns)
        return shape if self.samples == 1 else (*shape, self.samples)

    @property
    def frame_values(self) -> int:
        """Stored values in one frame."""
        return self.rows * self.columns * self.samples

    @property
    def frame_bytes(self) -> int:
        """Bytes of one decoded frame (one byte for a value of one bit)."""
        return self.frame_values * max(self.bits_allocated // 8, 1)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of a stored value in our byte order."""
        return np.dtype(f"{'i' if self.signed else 'u'}{max(self.bits_allocated // 8, 1)}")


def layout(header: InstanceHeader, limits: DecodeLimits) -> PixelLayout:
    """The pixel layout that `header` describes.

    Raises:
        HeaderError: an attribute is absent or contradicts another.
        UnsupportedError: sound, but not decoded here (64 bit, four samples).
        DecodeError: larger than `limits`.
    """
    rows = _positive("(0028,0010) Rows", header.rows)
    columns = _positive("(0028,0011) Columns", header.columns)
    allocated = _positive("(0028,0100) Bits Allocated", header.bits_allocated)
    stored = allocated if header.bits_stored is None else header.bits_stored
    high = stored - 1 if header.high_bit is None else header.high_bit
    samples = header.samples_per_pixel
    if allocated not in (1, 8, 16, 32):
        raise UnsupportedError(f"(0028,0100) Bits Allocated is {allocated}, decoded are 1, 8, 16, 32")
    if samples not in (1, 3):
        raise UnsupportedError(f"(0028,0002) Samples per Pixel is {samples}, decoded are 1 and 3")
    if not 1 <= stored <= allocated:
        raise HeaderError(
            f"(0028,0101) Bits Stored is {stored}, must be 1 to Bits Allocated = {allocated} (PS3.5 §8.1.1)"
        )
    if not stored - 1 <= high < allocated:
        raise HeaderError(f"(0028,0102) High Bit is {high}, must be {stored - 1} to {allocated - 1}")
    if header.pixel_representation not in (0, 1):
        raise HeaderError(
            f"(0028,0103) Pixel Representation is {header.pixel_representation}, must be 0 or 1"
        )
    if header.planar_configuration not in (0, 1):
        raise HeaderError(
            f"(0028,0006) Planar Configuration is {header.planar_configuration}, must be 0 or 1"
        )
    photometric = header.photometric_interpretation
    if (samples == 1) != (photometric in _ONE_SAMPLE):
        raise HeaderError(
            f"(0028,0002) Samples per Pixel is {samples}, which contradicts"
            f" (0028,0004) Photometric Interpretation {photometric[:16]!r}"
        )
    found = PixelLayout(
        frames=_positive("(0028,0008) Number of Frames", header.number_of_frames),
        rows=rows,
        columns=columns,
        samples=samples,
        photometric_interpretation=photometric,
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=high,
        signed=header.pixel_representation == 1,
        planar=header.planar_configuration == 1 and samples > 1,
    )
    _bound("(0028,0008) Number of Frames", found.frames, limits.max_frames)
    _bound("one decoded frame in bytes", found.frame_bytes, limits.max_frame_bytes)
    _bound("decoded pixel data in bytes", found.frame_bytes * found.frames, limits.max_bytes)
    return found


def spread_bits(values: NDArray[Any], bits: int, high_bit: int) -> NDArray[Any]:
    """Give each stored value the meaning of its type, in place (PS3.5 §8.1.1).

    Bits above `high_bit` are no part of the value (old writers put overlays there, and
    others leave rubbish); the sign is in `high_bit`.

    Args:
        values: as stored; signed when Pixel Representation is 1.
        bits: how many of its bits are the value.
        high_bit: the highest of them, counted from 0.
    """
    width = values.dtype.itemsize * 8
    above = width - 1 - high_bit
    if values.dtype.kind == "u" and high_bit == bits - 1:
        if above:
            np.bitwise_and(values, (1 << bits) - 1, out=values)
        return values
    if above:
        np.left_shift(values, above, out=values)
    if bits < width:
        np.right_shift(values, width - bits, out=values)
    return values


_ONE_SAMPLE: Final = frozenset({"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"})


def _positive(name: str, value: int | None) -> int:
    if value is None:
        raise HeaderError(f"{name} is absent (PS3.3 §C.7.6.3)")
    if value < 1:
        raise HeaderError(f"{name} is {value}, must be at least 1")
    return value


def _bound(name: str, value: int, allowed: int) -> None:
    if value > allowed:
        raise DecodeError(f"{name}: {value}, allowed {allowed}")
