"""What the codestream of one compressed frame says of itself, read before it is decoded.

Owns the few bytes of JPEG, JPEG-LS, JPEG 2000 and RLE that tell the size of what comes
out; decodes nothing. A decoder allocates what these bytes ask for, so they are compared
with the header first. Implements ITU-T T.81 §B.2.2, T.87 §C.2.2, T.800 §A.5.1 and
PS3.5 §G.5.
"""

import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from dicom.errors import DecodeError

MAX_SEGMENTS: Final = 1_024
"""Marker segments before the frame header; real streams have about ten (tables, APPn, comments)."""
END_WINDOW_BYTES: Final = 64
"""How far from the end the end marker may stand: writers pad a fragment, some to 16 or 32 bytes."""

SEQUENTIAL: Final = frozenset({0xC0, 0xC1})  # SOF0 baseline, SOF1 extended sequential
LOSSLESS: Final = frozenset({0xC3})
JPEG_LS: Final = frozenset({0xF7})
_FRAME_MARKERS: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | JPEG_LS
"""SOF of any process; C4, C8 and CC among them are tables (T.81 Table B.1)."""


@dataclass(frozen=True, slots=True)
class Codestream:
    """The frame that a codestream announces."""

    rows: int
    columns: int
    components: int
    precision: int
    """Bits of one sample."""
    is_rgb: bool | None = None
    """What JPEG markers say of the colours: True for components named R, G, B; False for JFIF (YBR)."""


def read_jpeg(data: bytes, frame_markers: frozenset[int]) -> Codestream:
    """The frame header of a JPEG or JPEG-LS codestream whose SOF marker is one of `frame_markers`.

    Raises:
        DecodeError: no such codestream, of another process, or cut short.
    """
    if data[:2] != b"\xff\xd8":
        raise DecodeError(f"JPEG codestream begins {data[:2].hex()}, must begin ffd8 (SOI)")
    jfif = False
    position = 2
    for _ in range(MAX_SEGMENTS):
        while data[position : position + 2] == b"\xff\xff":  # fill bytes, T.81 §B.1.1.2
            position += 1
        head = data[position : position + 4]
        if len(head) < 4 or head[0] != 0xFF:
            break
        marker, length = head[1], int.from_bytes(head[2:], "big")
        if marker in _FRAME_MARKERS:
            _require_marker(marker, frame_markers)
            return _frame_header(data[position + 4 : position + 2 + length], jfif=jfif)
        jfif = jfif or (marker == 0xE0 and data[position + 4 : position + 8] == b"JFIF")
        position += 2 + length
    raise DecodeError("JPEG codestream has no frame header (SOF)")


def read_jpeg2000(data: bytes) -> tuple[Codestream, bytes]:
    """The SIZ segment of a JPEG 2000 or HTJ2K codestream, and the codestream without a JP2 box.

    Raises:
        DecodeError: no such codestream, cut short, or its components differ in size or depth.
    """
    if data[4:8] == b"jP  ":
        data = _without_boxes(data)
    siz = data[2:42]
    if len(siz) < 40 or data[:4] != b"\xff\x4f\xff\x51":
        raise DecodeError(f"JPEG 2000 codestream begins {data[:4].hex()}, must begin ff4fff51 (SOC, SIZ)")
    right, bottom, left, top, tile_columns, tile_rows = struct.unpack_from(">6I", siz, 6)
    (components,) = struct.unpack_from(">H", siz, 38)
    each = data[42 : 42 + 3 * components]
    if not 1 <= components <= 3 or len(each) != 3 * components:
        raise DecodeError(f"JPEG 2000 codestream has {components} components, allowed 1 to 3")
    if any(each[i : i + 3] != each[:1] + b"\x01\x01" for i in range(0, len(each), 3)):
        raise DecodeError("JPEG 2000 codestream: components of different size or depth are not decoded")
    if right <= left or bottom <= top or not tile_columns or not tile_rows:
        raise DecodeError("JPEG 2000 codestream: the image or its tiles have no area")
    return Codestream(bottom - top, right - left, components, (each[0] & 0x7F) + 1), data


def require_end(data: bytes) -> None:
    """Check that the end marker (EOI, EOC: the same bytes) is there.

    The JPEG decoder fills what is missing of a cut codestream with grey and says nothing;
    coded data cannot hold these two bytes (T.81 §B.1.1.5, T.87 §A.1, T.800 §A.1.1).

    Raises:
        DecodeError: the codestream has been cut short.
    """
    if data.rfind(b"\xff\xd9", max(len(data) - END_WINDOW_BYTES, 2)) < 0:
        raise DecodeError("codestream has no end marker (ffd9): cut short")


def rle_segments(data: bytes, expected: int) -> list[bytes]:
    """The segments of an RLE frame (PS3.5 §G.5), of which there must be `expected`.

    Raises:
        DecodeError: another number of segments, or an offset that goes back or beyond the end.
    """
    if len(data) < 64:
        raise DecodeError(f"RLE frame has {len(data)} bytes, its header alone has 64 (PS3.5 §G.5)")
    count, *offsets = struct.unpack_from("<16I", data)
    if count != expected:
        raise DecodeError(f"RLE frame has {count} segments, its header asks for {expected}")
    edges = [*offsets[:count], len(data)]
    if edges[0] != 64 or any(start >= stop for start, stop in pairwise(edges)):
        raise DecodeError(f"RLE frame: segment offsets {edges[:-1]} do not rise from 64 to {len(data)}")
    return [data[start:stop] for start, stop in pairwise(edges)]


def _require_marker(marker: int, allowed: frozenset[int]) -> None:
    if marker not in allowed:
        names = " or ".join(f"ff{value:02x}" for value in sorted(allowed))
        raise DecodeError(f"JPEG frame header is ff{marker:02x}, this transfer syntax has {names}")


def _frame_header(segment: bytes, *, jfif: bool) -> Codestream:
    if len(segment) < 6 or len(segment) < 6 + 3 * segment[5]:
        raise DecodeError("JPEG frame header is cut short")
    precision, rows, columns, components = struct.unpack_from(">BHHB", segment)
    names = segment[6 : 6 + 3 * components : 3]
    is_rgb = True if names in (b"RGB", b"rgb") else False if jfif else None
    return Codestream(rows, columns, components, precision, is_rgb)


def _without_boxes(data: bytes) -> bytes:
    # Off-spec: PS3.5 §A.4.4 wants the bare codestream; some writers leave the JP2 boxes around it.
    position = 0
    for _ in range(MAX_SEGMENTS):
        head = data[position : position + 8]
        if len(head) < 8:
            break
        if head[4:] == b"jp2c":
            return data[position + 8 :]
        position += max(int.from_bytes(head[:4], "big"), 8)
    raise DecodeError("JP2 file has no codestream box")
