"""Single frames of stored instances: as they are stored, as plain values, and as a picture.

Owns what WADO-RS gives of pixels (PS3.18 §10.4.1.1.4 and §10.4.1.1.3): the bytes of a frame with their
media type, and a frame rendered with its window (PS3.3 §C.11.2.1.2). Decoding is `dicom.decode`.

Security: the header is checked against the file and `DecodeLimits` before memory is taken. A frame of native
data is read by itself; compressed frames are decoded with all of their instance.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dicom.decode import DEFAULT_LIMITS, decode, modality_values
from dicom.errors import DecodeError, UnsupportedError
from dicom.header import InstanceHeader
from dicom.layout import DecodeLimits, layout
from dicom.part10 import MAX_META_BYTES, read_meta

OCTET_STREAM: Final = "application/octet-stream"
STORED_MEDIA_TYPES: Final = MappingProxyType(
    {
        "1.2.840.10008.1.2.4.50": "image/jpeg",
        "1.2.840.10008.1.2.4.51": "image/jpeg",
        "1.2.840.10008.1.2.4.57": "image/jpeg",
        "1.2.840.10008.1.2.4.70": "image/jpeg",
        "1.2.840.10008.1.2.4.80": "image/jls",
        "1.2.840.10008.1.2.4.81": "image/jls",
        "1.2.840.10008.1.2.4.90": "image/jp2",
        "1.2.840.10008.1.2.4.91": "image/jp2",
        "1.2.840.10008.1.2.4.201": "image/jphc",
        "1.2.840.10008.1.2.4.202": "image/jphc",
        "1.2.840.10008.1.2.4.203": "image/jphc",
        "1.2.840.10008.1.2.5": "image/dicom-rle",
    }
)
"""Media types of compressed frames (PS3.18 Table 8.7.3-5)."""
MAX_FRAMES_AT_ONCE: Final = 256
"""Frames of one request: a viewer asks for one to ten."""
MAX_RENDERED_PIXELS: Final = 64 * 1024 * 1024
"""Of one picture; 8192 by 8192."""

_LITTLE: Final = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1"})
_PILLOW: Final = MappingProxyType({"image/png": "PNG", "image/jpeg": "JPEG"})


@dataclass(frozen=True, slots=True)
class Window:
    """Window Center (0028,1050) and Width (0028,1051), in modality units, linear (PS3.3 §C.11.2.1.2.1)."""

    center: float
    width: float


def stored_frames(path: Path, header: InstanceHeader, numbers: Sequence[int]) -> list[bytes]:
    """Compressed frames as they are stored, fragments joined.

    Raises:
        UnsupportedError: they are not compressed.
        DecodeError: a number is beyond the last frame, or the fragments are damaged.
        OSError: the file cannot be read.
    """
    from pydicom.encaps import generate_frames  # noqa: PLC0415 (half a second; native frames do without)

    _require(header, numbers)
    if header.transfer_syntax_uid not in STORED_MEDIA_TYPES or header.pixel_data_offset is None:
        raise UnsupportedError(f"SOP Instance {header.sop_instance_uid}: its frames are not compressed")
    wanted = dict.fromkeys(numbers, b"")
    with path.open("rb") as file:
        meta = read_meta(file.read(MAX_META_BYTES))
        file.seek(meta.dataset_offset + header.pixel_data_offset)
        try:
            frames = generate_frames(file, number_of_frames=header.number_of_frames)
            for number, frame in enumerate(frames, start=1):
                if number in wanted:
                    wanted[number] = frame
                if number >= max(numbers):
                    break
        except (ValueError, TypeError, IndexError, StopIteration, RuntimeError, EOFError) as error:
            raise DecodeError(f"SOP Instance {header.sop_instance_uid}: its fragments are damaged") from error
    if not all(wanted.values()):
        raise DecodeError(f"SOP Instance {header.sop_instance_uid}: has fewer frames than it says")
    return [wanted[number] for number in numbers]


def plain_frames(
    path: Path, header: InstanceHeader, numbers: Sequence[int], limits: DecodeLimits = DEFAULT_LIMITS
) -> list[bytes]:
    """Frames as plain stored values, little endian, as in Explicit VR Little Endian.

    Args:
        path: the file.
        header: of it.
        numbers: from 1.
        limits: what decoding may cost.

    Raises:
        InstanceError: as of `dicom.decode.decode`, or a number is beyond the last frame.
        OSError: the file cannot be read.
    """
    _require(header, numbers)
    if header.transfer_syntax_uid in _LITTLE and header.pixel_data_length is not None:
        found = layout(header, limits)
        bits = found.frame_values * found.bits_allocated
        if bits % 8 == 0 and found.photometric_interpretation != "YBR_FULL_422":
            return _native(path, header, numbers, bits // 8)
    pixels = decode(path, header, limits).pixels
    if header.bits_allocated == 1:
        return [np.packbits(pixels[number - 1].ravel(), bitorder="little").tobytes() for number in numbers]
    little = pixels.dtype.newbyteorder("<")
    return [np.ascontiguousarray(pixels[number - 1]).astype(little).tobytes() for number in numbers]


def rendered(
    path: Path,
    header: InstanceHeader,
    number: int,
    media_type: str,
    window: Window | None = None,
    limits: DecodeLimits = DEFAULT_LIMITS,
) -> bytes:
    """One frame as PNG or JPEG: grey with its window, colour as it is.

    Args:
        path: the file.
        header: of it.
        number: of the frame, from 1.
        media_type: `image/png` or `image/jpeg`.
        window: instead of the instance's own; without any the values' whole range is shown.
        limits: what decoding may cost.

    Raises:
        InstanceError: as of `dicom.decode.decode`, or it has no pixels that make a picture.
        OSError: the file cannot be read.
    """
    from PIL import Image  # noqa: PLC0415 (only here)

    _require(header, [number])
    if header.rows is None or header.pixel_data_offset is None:
        raise UnsupportedError(f"SOP Instance {header.sop_instance_uid}: has no pixels")
    if header.rows * (header.columns or 0) > MAX_RENDERED_PIXELS:
        raise UnsupportedError(f"SOP Instance {header.sop_instance_uid}: too large for a picture")
    frames = decode(path, header, limits)
    pixels = frames.pixels[number - 1]
    if pixels.ndim == 2:
        picture = _grey(pixels, header, window)
        if frames.photometric_interpretation == "MONOCHROME1":
            picture = 255 - picture
    else:
        picture = _eight_bits(pixels, header.bits_stored or 8)
    file = BytesIO()
    Image.fromarray(picture).save(file, _PILLOW[media_type])
    return file.getvalue()


def _grey(pixels: NDArray[Any], header: InstanceHeader, window: Window | None) -> NDArray[np.uint8]:
    """Shape (rows, columns): black to white over the window."""
    values = modality_values(pixels, header)
    if window is None and header.window_center is not None and (header.window_width or 0) >= 1:
        window = Window(header.window_center, header.window_width or 1.0)
    if window is None:
        low, high = float(values.min()), float(values.max())
        scale = 255.0 / (high - low) if high > low else 0.0
        return _bytes((values - low) * scale)
    width = max(window.width - 1.0, 1e-6)  # PS3.3 §C.11.2.1.2.1: c - 0.5 and w - 1
    share = (values - (window.center - 0.5)) / width + 0.5
    return _bytes(share * 255.0)


def _bytes(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    rounded: NDArray[np.uint8] = np.clip(values + 0.5, 0, 255).astype(np.uint8)
    return rounded


def _eight_bits(pixels: NDArray[Any], bits_stored: int) -> NDArray[np.uint8]:
    return np.ascontiguousarray(pixels >> max(bits_stored - 8, 0)).astype(np.uint8)


def _native(path: Path, header: InstanceHeader, numbers: Sequence[int], frame_bytes: int) -> list[bytes]:
    assert header.pixel_data_offset is not None
    found = []
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        begin = read_meta(os.pread(handle, MAX_META_BYTES, 0)).dataset_offset + header.pixel_data_offset
        for number in numbers:
            frame = os.pread(handle, frame_bytes, begin + (number - 1) * frame_bytes)
            if len(frame) < frame_bytes or number * frame_bytes > (header.pixel_data_length or 0):
                raise DecodeError(
                    f"SOP Instance {header.sop_instance_uid}: Pixel Data ends before frame {number}"
                )
            found.append(frame)
    finally:
        os.close(handle)
    return found


def _require(header: InstanceHeader, numbers: Sequence[int]) -> None:
    if not numbers or len(numbers) > MAX_FRAMES_AT_ONCE:
        raise UnsupportedError(f"{len(numbers)} frames asked for at once, allowed 1 to {MAX_FRAMES_AT_ONCE}")
    beyond = [number for number in numbers if not 1 <= number <= header.number_of_frames]
    if beyond:
        raise DecodeError(
            f"SOP Instance {header.sop_instance_uid}: frame {beyond[0]} asked for,"
            f" it has {header.number_of_frames}"
        )
