"""Decoding of one compressed frame: which decoder for which transfer syntax.

Owns the table of decoders. One decoder for each syntax and no second one behind it:
decoders differ by a grey level, and a laxer one would turn a damaged frame into a
picture. What each gives is compared with other decoders in `tests/dicom/test_codec.py`.
Implements PS3.5 §A.4, §8.2 and Annex G.

Security: the codestream is hostile. What it says of its own size is compared with the
header before a decoder sees it. Found in imagecodecs 2026.3.6 by changing bytes:

* `dicomrle_decode` crashes the process on a false segment offset: RLE is taken apart here.
* `htj2k_decode` (OpenJPH) swallows the decoder's errors, giving a damaged picture, and can
  run for ever: HTJ2K goes through OpenJPEG, which takes twice the time and refuses.
* `jpeg8_decode` fills what a cut JPEG lacks with grey: its markers are walked up to the end
  marker. Damage within a JPEG that keeps its markers cannot be told from pixels. It passes
  over markers without a length and over bytes between segments, behind which a larger frame
  header can stand: none of them is taken.
* `jpegls_decode` (CharLS) needs up to 28 s to refuse a scan that runs to the last byte of the
  codestream (its count of bits left wraps round). A marker behind the scan is what it needs
  to stop at once; the walk asks for one.
* `jpeg2k_decode` (OpenJPEG) takes memory for tiles, precincts and code-blocks of which no byte
  came: they are counted first.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dicom.codestream import (
    JPEG_LS,
    LOSSLESS,
    SEQUENTIAL,
    Codestream,
    read_jpeg,
    rle_segments,
)
from dicom.errors import DecodeError
from dicom.jpeg2000 import read_jpeg2000
from dicom.layout import PixelLayout, spread_bits


class Codec(NamedTuple):
    """A row of the table."""

    name: str
    """The decoder within imagecodecs, for the provenance."""
    decode: Callable[[bytes, PixelLayout], tuple[NDArray[Any], str]]
    """Codestream and layout to the frame and the photometric interpretation that it now has."""


def decoder_name(transfer_syntax_uid: str) -> str:
    """The decoder and its version: `native`, or as `imagecodecs 2026.3.6 jpegls`."""
    codec = CODECS.get(transfer_syntax_uid)
    return f"imagecodecs {_imagecodecs().__version__} {codec.name}" if codec else "native"


def decode_frame(data: bytes, transfer_syntax_uid: str, layout: PixelLayout) -> tuple[NDArray[Any], str]:
    """Decode one frame.

    Args:
        data: the codestream: all fragments of the frame, joined.
        transfer_syntax_uid: a key of `CODECS`.
        layout: what the header says that comes out.

    Returns:
        The frame, of `layout.frame_shape` and `layout.dtype`; and its photometric
        interpretation (RGB when the codec undid its colour transform).

    Raises:
        DecodeError: damaged, cut short, or not what the header says.
    """
    allowed = 2 * layout.frame_bytes + 65_536
    if len(data) > allowed:  # no coder here doubles even noise
        raise DecodeError(f"codestream has {len(data)} bytes, allowed {allowed} for a frame of this size")
    frame, photometric = CODECS[transfer_syntax_uid].decode(data, layout)
    if frame.shape != layout.frame_shape or frame.dtype != layout.dtype:
        raise DecodeError(
            f"decoder gave {frame.dtype} {frame.shape}, header says {layout.dtype} {layout.frame_shape}"
        )
    return frame, photometric


def _rle(data: bytes, layout: PixelLayout) -> tuple[NDArray[Any], str]:
    """PS3.5 §G.2: a segment for each byte of each sample, the most significant byte first."""
    width = layout.bits_allocated // 8
    plane = layout.rows * layout.columns
    segments = rle_segments(data, layout.samples * width)
    octets = np.empty((plane, layout.samples, width), np.uint8)
    buffer = np.empty(plane + 1, np.uint8)
    for index, segment in enumerate(segments):
        # A zero that pads the segment to even length is the head of a literal run of one byte: the
        # byte appended here is its value, or, where nothing was padded, no operation (PS3.5 §G.3.2).
        decoded = _call("packbits_decode", segment + b"\x80", out=buffer)
        if len(decoded) == plane and decoded[-1] == 0x80:
            decoded = _call("packbits_decode", segment, out=buffer)  # or it took the place of a lost byte
        if not plane <= len(decoded) <= plane + 1:
            raise DecodeError(f"RLE segment {index + 1} has {len(decoded)} bytes, must have {plane}")
        octets[:, index // width, width - 1 - index % width] = decoded[:plane]
    frame = octets.view(layout.dtype.newbyteorder("<")).reshape(layout.frame_shape)
    frame = frame.astype(layout.dtype, copy=False)
    return spread_bits(frame, layout.bits_stored, layout.high_bit), layout.photometric_interpretation


def _jpeg_sequential(data: bytes, layout: PixelLayout) -> tuple[NDArray[Any], str]:
    stream = _check(read_jpeg(data, SEQUENTIAL), layout)
    if layout.samples == 1:
        frame = _call("jpeg8_decode", data)
        return _typed(frame, stream.precision, layout), layout.photometric_interpretation
    ybr = layout.photometric_interpretation != "RGB"
    if stream.is_rgb is not None:  # the markers were written with the pixels, the attribute perhaps later
        ybr = not stream.is_rgb
    frame = _call("jpeg8_decode", data, colorspace="YCBCR" if ybr else "RGB", outcolorspace="RGB")
    return _typed(frame, stream.precision, layout), "RGB"


def _jpeg_lossless(data: bytes, layout: PixelLayout) -> tuple[NDArray[Any], str]:
    stream = _check(read_jpeg(data, LOSSLESS), layout)
    colours = {"colorspace": "RGB", "outcolorspace": "RGB"} if layout.samples == 3 else {}
    frame = _call("jpeg8_decode", data, **colours)
    return (
        _typed(frame, min(stream.precision, layout.bits_stored), layout),
        layout.photometric_interpretation,
    )


def _jpeg_ls(data: bytes, layout: PixelLayout) -> tuple[NDArray[Any], str]:
    stream = _check(read_jpeg(data, JPEG_LS), layout)
    frame = _call("jpegls_decode", data)
    if layout.samples == 3 and frame.shape == (3, layout.rows, layout.columns):  # interleave mode "none"
        frame = np.ascontiguousarray(np.moveaxis(frame, 0, -1))
    return _typed(frame, stream.precision, layout), layout.photometric_interpretation


def _jpeg2000(data: bytes, layout: PixelLayout) -> tuple[NDArray[Any], str]:
    stream, bare = read_jpeg2000(data)
    _check(stream, layout)
    frame = _call("jpeg2k_decode", bare, numthreads=1)
    photometric = layout.photometric_interpretation
    if photometric in ("YBR_ICT", "YBR_RCT"):  # PS3.5 §8.2.4: the decoder undoes these
        photometric = "RGB"
    return _typed(frame, stream.precision, layout), photometric


CODECS: Final[Mapping[str, Codec]] = {
    "1.2.840.10008.1.2.5": Codec("packbits", _rle),  # RLE Lossless
    "1.2.840.10008.1.2.4.50": Codec("jpeg8", _jpeg_sequential),  # JPEG Baseline
    "1.2.840.10008.1.2.4.51": Codec("jpeg8", _jpeg_sequential),  # JPEG Extended, 8 and 12 bit
    "1.2.840.10008.1.2.4.57": Codec("jpeg8", _jpeg_lossless),  # JPEG Lossless
    "1.2.840.10008.1.2.4.70": Codec("jpeg8", _jpeg_lossless),  # JPEG Lossless, first-order prediction
    "1.2.840.10008.1.2.4.80": Codec("jpegls", _jpeg_ls),  # JPEG-LS Lossless
    "1.2.840.10008.1.2.4.81": Codec("jpegls", _jpeg_ls),  # JPEG-LS Near-lossless
    "1.2.840.10008.1.2.4.90": Codec("jpeg2k", _jpeg2000),  # JPEG 2000 Lossless Only
    "1.2.840.10008.1.2.4.91": Codec("jpeg2k", _jpeg2000),  # JPEG 2000
    "1.2.840.10008.1.2.4.201": Codec("jpeg2k", _jpeg2000),  # HTJ2K Lossless Only
    "1.2.840.10008.1.2.4.202": Codec("jpeg2k", _jpeg2000),  # HTJ2K Lossless RPCL
    "1.2.840.10008.1.2.4.203": Codec("jpeg2k", _jpeg2000),  # HTJ2K
}


def _imagecodecs() -> ModuleType:
    # Imported when the first compressed frame comes: native frames need none of its libraries.
    return import_module("imagecodecs")


def _call(function: str, data: bytes, **options: object) -> NDArray[Any]:
    try:
        decoded = getattr(_imagecodecs(), function)(data, **options)
    except (RuntimeError, ValueError, TypeError, OverflowError, IndexError, MemoryError) as error:
        raise DecodeError(f"{function}: {error}") from error
    return np.asarray(decoded)


def _check(stream: Codestream, layout: PixelLayout) -> Codestream:
    got = (stream.rows, stream.columns, stream.components)
    must = (layout.rows, layout.columns, layout.samples)
    if got != must:
        raise DecodeError(f"codestream is {got} (rows, columns, samples), header says {must}")
    if not 1 <= stream.precision <= layout.bits_allocated:
        raise DecodeError(
            f"codestream has {stream.precision} bits a sample,"
            f" (0028,0100) Bits Allocated is {layout.bits_allocated}"
        )
    return stream


def _typed(frame: NDArray[Any], precision: int, layout: PixelLayout) -> NDArray[Any]:
    """`frame` in the type that Pixel Representation asks for, whatever sign the codestream has."""
    if frame.dtype.itemsize > layout.dtype.itemsize:
        raise DecodeError(
            f"decoder gave {frame.dtype}, (0028,0100) Bits Allocated is {layout.bits_allocated}"
        )
    if not frame.flags.writeable or frame.dtype.itemsize < layout.dtype.itemsize:
        frame = frame.astype(layout.dtype)
    elif frame.dtype != layout.dtype:
        frame = frame.view(layout.dtype)
    return spread_bits(frame, precision, precision - 1)
