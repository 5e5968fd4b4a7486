"""From a stored instance to its pixel values: native, deflated and encapsulated.

Owns the way from the file to an array of stored values, and from these to modality
units (Modality LUT, PS3.3 §C.11.1). The codecs are in `codec`, the meaning of the
bits in `layout`. Builds no `Dataset`. Implements PS3.5 §8.1, §8.2, §A.1 to §A.5.

Security: the file and its header are hostile; what comes out is bounded by
`DecodeLimits` before memory is taken, and only `InstanceError` comes out of damage.
"""

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dicom.codec import CODECS, decode_frame, decoder_name
from dicom.errors import DecodeError, HeaderError, InstanceError, UnsupportedError
from dicom.header import InstanceHeader, scan
from dicom.layout import DecodeLimits, PixelLayout, layout, spread_bits
from dicom.part10 import read_meta

IMPLICIT_LITTLE: Final = "1.2.840.10008.1.2"
EXPLICIT_LITTLE: Final = "1.2.840.10008.1.2.1"
EXPLICIT_BIG: Final = "1.2.840.10008.1.2.2"
DEFLATED_LITTLE: Final = "1.2.840.10008.1.2.1.99"
NATIVE: Final = frozenset({IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG, DEFLATED_LITTLE})
DECODED: Final = NATIVE | frozenset(CODECS)
"""The transfer syntaxes that `decode` knows."""

DEFAULT_LIMITS: Final = DecodeLimits()
MAX_DEFLATED_HEADER_BYTES: Final = 16 * 1024**2
"""What a deflated data set may hold besides its pixel data; icons and private groups are below 1 MiB."""
MAX_RESCALE: Final = 1e20
"""Rescale slope and intercept: beyond, values in float32 become infinite."""


@dataclass(frozen=True)
class DecodedFrames:
    """The stored values of one instance."""

    pixels: NDArray[Any]
    """Shape (frames, rows, columns), or (frames, rows, columns, samples) for colour; integers."""
    photometric_interpretation: str
    """After decoding: YBR of any kind has become RGB."""
    decoder: str
    """`native`, or package, version and function, for the provenance."""


def decode(path: Path, header: InstanceHeader, limits: DecodeLimits = DEFAULT_LIMITS) -> DecodedFrames:
    """Decode all frames of one stored instance.

    Args:
        path: the file (PS3.10 §7).
        header: what `header.scan_file` found in it.
        limits: what it may cost.

    Returns:
        Stored values, not rescaled; MONOCHROME1 is not inverted.

    Raises:
        UnsupportedError: sound, but its transfer syntax (named) or its layout is not decoded here.
        HeaderError: attributes are absent or contradict each other.
        DecodeError: damaged, cut short, not what its header says, or larger than `limits`.
        OSError: the file cannot be read.
    """
    syntax = header.transfer_syntax_uid
    try:
        if syntax not in DECODED:
            raise UnsupportedError(f"transfer syntax {syntax_name(syntax)} is not decoded")
        pixel_layout = layout(header, limits)
        if syntax in CODECS:
            pixels, photometric = _encapsulated(path, header, pixel_layout)
        else:
            pixels, photometric = _native(path, header, pixel_layout), header.photometric_interpretation
        if photometric.startswith("YBR"):
            pixels, photometric = _rgb(pixels, photometric), "RGB"
        return DecodedFrames(pixels, photometric, decoder_name(syntax))
    except InstanceError as error:
        raise type(error)(f"SOP Instance {header.sop_instance_uid}: {error}") from error


def modality_values(
    frames: NDArray[Any], header: InstanceHeader, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Stored values to modality units: value times slope + intercept (PS3.3 §C.11.1.1.2).

    Args:
        frames: stored values, of any shape.
        header: of the instance that they are from; no Rescale Slope and Intercept means 1 and 0.
        out: where to write, of the same shape; new memory if None.

    Raises:
        UnsupportedError: the slope is 0, which makes one value of all.
        HeaderError: slope or intercept is not finite.
    """
    slope = 1.0 if header.rescale_slope is None else header.rescale_slope
    intercept = 0.0 if header.rescale_intercept is None else header.rescale_intercept
    if slope == 0:
        raise UnsupportedError(
            f"SOP Instance {header.sop_instance_uid}: (0028,1053) Rescale Slope is 0, which makes one value"
            " of all; allowed is any other number"
        )
    if not abs(slope) <= MAX_RESCALE or not abs(intercept) <= MAX_RESCALE:
        raise HeaderError(
            f"SOP Instance {header.sop_instance_uid}: (0028,1053) Rescale Slope is {slope} and (0028,1052)"
            f" Rescale Intercept is {intercept}, must be within {MAX_RESCALE:g}"
        )
    if frames.dtype.itemsize > 2 and (slope, intercept) != (1.0, 0.0):
        exact = frames.astype(np.float64) * slope + intercept  # 32-bit values do not fit float32
        if out is None:
            return exact.astype(np.float32)
        np.copyto(out, exact, casting="same_kind")
        return out
    if out is None:
        out = np.empty(frames.shape, np.float32)
    np.copyto(out, frames, casting="unsafe")
    if slope != 1.0:
        np.multiply(out, np.float32(slope), out=out)
    if intercept != 0.0:
        np.add(out, np.float32(intercept), out=out)
    return out


def warm_up() -> None:
    """Import the codecs now, so that the first compressed study does not wait for them."""
    for syntax in CODECS:
        decoder_name(syntax)
    _frame_generator()


def syntax_name(transfer_syntax_uid: str) -> str:
    """The UID of a transfer syntax with its name, where the Standard has one."""
    from pydicom.uid import UID  # noqa: PLC0415  (half a second; for messages only)

    name = UID(transfer_syntax_uid).name
    return transfer_syntax_uid if name == transfer_syntax_uid else f"{transfer_syntax_uid} ({name})"


HEAD_BYTES: Final = 1024
"""Enough for the File Meta Information that intake writes (about 350 bytes)."""
MAX_META_BYTES: Final = 1024**2
"""Where HEAD_BYTES did not do: private information in the meta group (PS3.10 §7.1)."""
ELEMENT_HEAD_BYTES: Final = 12
"""Tag, VR, reserved, length: what stands before the value of Pixel Data in explicit VR."""
_PIXEL_DATA_LITTLE: Final = b"\xe0\x7f\x10\x00"
_PIXEL_DATA_BIG: Final = b"\x7f\xe0\x00\x10"


def _native(path: Path, header: InstanceHeader, pixel_layout: PixelLayout) -> NDArray[Any]:
    subsampled = pixel_layout.photometric_interpretation == "YBR_FULL_422"
    size = _native_bytes(pixel_layout, subsampled=subsampled)
    if header.transfer_syntax_uid == DEFLATED_LITTLE:
        vr, raw = _inflate(path, size)
    else:
        _require_length(header, size, pixel_layout)
        vr, raw = _read_native(path, header, size)
    if header.transfer_syntax_uid == EXPLICIT_BIG and (vr == b"OW" or pixel_layout.bits_allocated > 8):
        raw = _swapped(raw, max(pixel_layout.bits_allocated // 8, 2))
    if pixel_layout.bits_allocated == 1:
        count = pixel_layout.frames * pixel_layout.frame_values
        pixels = np.unpackbits(raw, count=count, bitorder="little")  # PS3.5 §8.1.1
        return pixels.reshape(pixel_layout.frames, *pixel_layout.frame_shape)
    if subsampled:
        return _upsampled(raw[:size], pixel_layout)
    pixels = raw[:size].view(pixel_layout.dtype)
    if pixel_layout.planar:
        planes = pixels.reshape(
            pixel_layout.frames, pixel_layout.samples, pixel_layout.rows, pixel_layout.columns
        )
        pixels = np.ascontiguousarray(np.moveaxis(planes, 1, -1))
    spread_bits(pixels, pixel_layout.bits_stored, pixel_layout.high_bit)
    return pixels.reshape(pixel_layout.frames, *pixel_layout.frame_shape)


def _native_bytes(pixel_layout: PixelLayout, *, subsampled: bool) -> int:
    values = pixel_layout.frames * pixel_layout.frame_values
    if subsampled:
        if pixel_layout.bits_allocated != 8 or pixel_layout.columns % 2:
            raise UnsupportedError(
                "YBR_FULL_422 of other than 8 bits or of an odd number of columns is not decoded"
            )
        return values // 3 * 2
    return -(-values * pixel_layout.bits_allocated // 8)


def _require_length(header: InstanceHeader, size: int, pixel_layout: PixelLayout) -> None:
    if header.pixel_data_offset is None:
        raise DecodeError("(7FE0,0010) Pixel Data is absent")
    if header.pixel_data_length is None:
        raise DecodeError("(7FE0,0010) Pixel Data has no length, but its transfer syntax is not encapsulated")
    # A row or more too much means that Rows or Columns is false, and the picture sheared.
    spare = max(pixel_layout.columns * pixel_layout.bits_allocated // 8 - 1, 1)
    if not size <= header.pixel_data_length <= size + spare:
        raise DecodeError(f"(7FE0,0010) Pixel Data has {header.pixel_data_length} bytes, must have {size}")


def _read_native(path: Path, header: InstanceHeader, size: int) -> tuple[bytes, NDArray[np.uint8]]:
    """The VR and the bytes of Pixel Data; one system call reads both into fresh memory."""
    element = bytearray(ELEMENT_HEAD_BYTES)
    raw = np.empty(size + size % 2, np.uint8)
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        begin = _pixel_data_begin(handle, header)
        got = os.preadv(handle, [element, raw.data], begin - ELEMENT_HEAD_BYTES) - ELEMENT_HEAD_BYTES
        while 0 <= got < size:  # one call moves at most 2 GiB
            more = os.preadv(handle, [raw.data[got:]], begin + got)
            if not more:
                break
            got += more
    finally:
        os.close(handle)
    if got < size:
        raise DecodeError(f"file ends after {max(got, 0)} of {size} bytes of (7FE0,0010) Pixel Data")
    if got < raw.size:
        raw[got:] = 0
    _require_element(bytes(element), header.transfer_syntax_uid)
    return bytes(element[4:6]), raw


def _pixel_data_begin(handle: int, header: InstanceHeader) -> int:
    if header.pixel_data_offset is None:
        raise DecodeError("(7FE0,0010) Pixel Data is absent")
    head = os.pread(handle, HEAD_BYTES, 0)
    try:
        meta = read_meta(head)
    except HeaderError:
        if len(head) < HEAD_BYTES:
            raise
        meta = read_meta(os.pread(handle, MAX_META_BYTES, 0))
    return meta.dataset_offset + header.pixel_data_offset


def _require_element(head: bytes, transfer_syntax_uid: str) -> None:
    """Check that the header is of this file: its offset points behind the head of Pixel Data."""
    if transfer_syntax_uid == IMPLICIT_LITTLE:
        found = head[4:8] == _PIXEL_DATA_LITTLE
    else:
        found = head[:4] == (_PIXEL_DATA_BIG if transfer_syntax_uid == EXPLICIT_BIG else _PIXEL_DATA_LITTLE)
    if not found:
        raise DecodeError(
            "(7FE0,0010) Pixel Data is not where the header says: another file, or changed since"
        )


def _inflate(path: Path, size: int) -> tuple[bytes, NDArray[np.uint8]]:
    """The pixel data of a deflated data set (PS3.5 §A.5)."""
    allowed = size + MAX_DEFLATED_HEADER_BYTES
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        begin = read_meta(os.pread(handle, MAX_META_BYTES, 0)).dataset_offset
        deflated = os.fstat(handle).st_size - begin
        if deflated > allowed:
            raise DecodeError(f"deflated data set has {deflated} bytes, allowed {allowed}")
        packed = os.pread(handle, deflated, begin)
    finally:
        os.close(handle)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = inflater.decompress(packed, allowed + 1)
    except zlib.error as error:
        raise DecodeError(f"deflated data set cannot be inflated: {error}") from error
    if len(data) > allowed:
        raise DecodeError(f"deflated data set: more than {allowed} bytes inflated")
    found = scan(data, EXPLICIT_LITTLE)
    offset = found.pixel_data_offset
    if offset is None or found.pixel_data_length is None:
        raise DecodeError("(7FE0,0010) Pixel Data is absent, or encapsulated where it cannot be")
    if min(found.pixel_data_length, len(data) - offset) < size:
        raise DecodeError(f"(7FE0,0010) Pixel Data has {found.pixel_data_length} bytes, must have {size}")
    return data[offset - 8 : offset - 6], np.frombuffer(bytearray(data[offset : offset + size]), np.uint8)


def _swapped(raw: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    return raw.view(f"u{width}").byteswap().view(np.uint8)


def _upsampled(raw: NDArray[np.uint8], pixel_layout: PixelLayout) -> NDArray[np.uint8]:
    """YBR_FULL_422: Y1 Y2 CB CR for two pixels of a row (PS3.3 §C.7.6.3.1.2)."""
    pairs = raw.reshape(pixel_layout.frames, pixel_layout.rows, pixel_layout.columns // 2, 4)
    pixels = np.empty((pixel_layout.frames, *pixel_layout.frame_shape), np.uint8)
    for shift in (0, 1):
        pixels[:, :, shift::2, 0] = pairs[..., shift]
        pixels[:, :, shift::2, 1:] = pairs[..., 2:]
    return pixels


def _encapsulated(path: Path, header: InstanceHeader, pixel_layout: PixelLayout) -> tuple[NDArray[Any], str]:
    pixels = np.empty((pixel_layout.frames, *pixel_layout.frame_shape), pixel_layout.dtype)
    photometric = pixel_layout.photometric_interpretation
    index = 0
    for index, frame in enumerate(_frames(path, header, pixel_layout), start=1):
        if index > pixel_layout.frames:
            raise DecodeError(f"more than {pixel_layout.frames} frames, the (0028,0008) Number of Frames")
        try:
            pixels[index - 1], photometric = decode_frame(frame, header.transfer_syntax_uid, pixel_layout)
        except DecodeError as error:
            raise DecodeError(f"frame {index}: {error}") from error
    if index != pixel_layout.frames:
        raise DecodeError(f"{index} frames, (0028,0008) Number of Frames is {pixel_layout.frames}")
    return pixels, photometric


def _frames(path: Path, header: InstanceHeader, pixel_layout: PixelLayout) -> Iterator[bytes]:
    """The codestreams in order, fragments joined (PS3.5 §A.4)."""
    if header.pixel_data_length is not None:
        raise DecodeError("(7FE0,0010) Pixel Data has a length, but its transfer syntax is encapsulated")
    allowed = (2 * pixel_layout.frame_bytes + 65_536) * (pixel_layout.frames + 1)
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        begin = _pixel_data_begin(handle, header)
        size = os.fstat(handle).st_size - begin
        if size > allowed:
            raise DecodeError(f"encapsulated Pixel Data has {size} bytes, allowed {allowed}")
        value = os.pread(handle, max(size, 0), begin)
        element = os.pread(handle, ELEMENT_HEAD_BYTES, begin - ELEMENT_HEAD_BYTES)
    finally:
        os.close(handle)
    _require_element(element, header.transfer_syntax_uid)
    try:
        yield from _frame_generator()(value, number_of_frames=pixel_layout.frames)
    except (ValueError, TypeError, IndexError, StopIteration, RuntimeError, struct.error) as error:
        raise DecodeError(f"fragments of (7FE0,0010) Pixel Data: {error}") from error


def _frame_generator() -> Callable[..., Iterator[bytes]]:
    from pydicom.encaps import generate_frames  # noqa: PLC0415  (half a second; native frames do without)

    return generate_frames


def _rgb(pixels: NDArray[Any], photometric: str) -> NDArray[Any]:
    """YBR_FULL to RGB (PS3.3 §C.7.6.3.1.2)."""
    if photometric not in ("YBR_FULL", "YBR_FULL_422") or pixels.dtype != np.uint8:
        raise UnsupportedError(
            f"(0028,0004) Photometric Interpretation {photometric[:16]!r} of {pixels.dtype} is not decoded"
        )
    for frame in pixels:  # one by one: the float copy is eight times a frame
        luma, blue, red = np.moveaxis(frame.astype(np.float32), -1, 0)
        blue, red = blue - 128, red - 128
        rgb = np.stack((luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue), -1)
        np.copyto(frame, np.clip(np.rint(rgb), 0, 255), casting="unsafe")
    return pixels
