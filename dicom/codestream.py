"""What the codestream of one compressed frame says of itself, read before it is decoded.

Owns the markers of JPEG and JPEG-LS and the segments of RLE; decodes nothing. A decoder
allocates what these bytes ask for, so they are compared with the header first. JPEG is
walked from its first marker to its last: a marker that this walk and a decoder could read
in two ways hides a second frame header from one of them, and is refused. JPEG 2000 is in
`jpeg2000`. Implements ITU-T T.81 §B.1.1 and §B.2, T.87 §C.2 and PS3.5 §G.5.
"""

import re
import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from dicom.errors import DecodeError

MAX_SEGMENTS: Final = 1_024
"""Marker segments of one codestream; real ones have about ten (tables, APPn, comments, three scans)."""
END_WINDOW_BYTES: Final = 64
"""How far from the end the end marker may stand: writers pad a fragment, some to 16 or 32 bytes."""

SEQUENTIAL: Final = frozenset({0xC0, 0xC1})  # SOF0 baseline, SOF1 extended sequential
LOSSLESS: Final = frozenset({0xC3})
JPEG_LS: Final = frozenset({0xF7})
_FRAME_MARKERS: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | JPEG_LS
"""SOF of any process; C4, C8 and CC among them are tables (T.81 Table B.1)."""
_START_OF_SCAN: Final = 0xDA
_END: Final = 0xD9
_PARAMETERS: Final = 0xF8  # LSE, of JPEG-LS alone
_MISCELLANEOUS: Final = frozenset({0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)})  # DHT, DQT, DRI, COM, APPn
_MARKER: Final = re.compile(rb"\xff+([^\xff])")  # fill bytes before it, T.81 §B.1.1.2
_AFTER_SCAN: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""The marker that ends a scan of JPEG: neither a stuffed zero nor a restart (T.81 §B.1.1.5)."""
_AFTER_SCAN_LS: Final = re.compile(rb"\xff[\x80-\xcf\xd8-\xff]")
"""The same of JPEG-LS, which stuffs one bit: what follows ff is below 80 (T.87 §A.1)."""


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

    All of the codestream is walked: one frame header, before the first scan; tables,
    comments and application data; scans up to the end marker, behind which there is
    padding at most. Nothing else passes: no second size (a second SOF, DNL, DHP, LSE of
    type 4), no marker without a length outside a scan (TEM, RSTn), no bytes between segments.

    Raises:
        DecodeError: no such codestream, of another process, of another build, or cut short.
    """
    if data[:2] != b"\xff\xd8":
        raise DecodeError(f"JPEG codestream begins {data[:2].hex()}, must begin ffd8 (SOI)")
    frame: Codestream | None = None
    jfif = scanned = False
    position = 2
    for _ in range(MAX_SEGMENTS):
        marker, position = _next_marker(data, position, frame)
        if marker == _END:
            return _ended(data, position, frame, scanned=scanned)
        if marker in _FRAME_MARKERS:
            _require_marker(marker, frame_markers)
        elif marker not in _MISCELLANEOUS | {_START_OF_SCAN} and not (
            marker == _PARAMETERS and frame_markers == JPEG_LS
        ):
            raise DecodeError(
                f"JPEG codestream has marker ff{marker:02x} at byte {position - 2}, which is not taken here"
            )
        segment, position = _segment(data, position, marker)
        if marker in _FRAME_MARKERS:
            if frame is not None:
                raise DecodeError("JPEG codestream has 2 frame headers (SOF), allowed 1")
            frame = _frame_header(segment, jfif=jfif)
        elif marker == _PARAMETERS:
            _require_parameters(segment)
        elif marker == _START_OF_SCAN:
            if frame is None:
                raise DecodeError("JPEG codestream has no frame header (SOF) before its first scan")
            scanned = True
            _require_scan(segment, frame, is_ls=frame_markers == JPEG_LS)
            after = (_AFTER_SCAN_LS if frame_markers == JPEG_LS else _AFTER_SCAN).search(data, position)
            if after is None:
                raise DecodeError("codestream has no end marker (ffd9): cut short")
            position = after.start()
        jfif = jfif or (marker == 0xE0 and segment[:4] == b"JFIF")
    raise DecodeError(f"JPEG codestream has more than {MAX_SEGMENTS} marker segments")


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


def _next_marker(data: bytes, position: int, frame: Codestream | None) -> tuple[int, int]:
    """The marker at `position`, fill bytes passed over, and where what follows it begins."""
    found = _MARKER.match(data, position)
    if found is not None:
        return found[1][0], found.end()
    if frame is None and not data[position:].strip(b"\xff"):
        raise DecodeError("JPEG codestream has no frame header (SOF): cut short")
    raise DecodeError(f"JPEG codestream has no marker at byte {position}, or is cut short there")


def _segment(data: bytes, position: int, marker: int) -> tuple[bytes, int]:
    """The parameters of the segment whose length is at `position`, and where the next one begins."""
    length = int.from_bytes(data[position : position + 2], "big")
    if not 2 <= length <= len(data) - position:
        raise DecodeError(
            f"JPEG segment ff{marker:02x} at byte {position - 2} has no length, or is cut short"
        )
    return data[position + 2 : position + length], position + length


def _ended(data: bytes, position: int, frame: Codestream | None, *, scanned: bool) -> Codestream:
    if frame is None or not scanned:
        raise DecodeError("JPEG codestream ends without a frame header (SOF) and a scan (SOS)")
    if len(data) - position > END_WINDOW_BYTES:
        raise DecodeError(
            f"JPEG codestream: {len(data) - position} bytes behind its end marker, allowed {END_WINDOW_BYTES}"
        )
    return frame


def _require_parameters(segment: bytes) -> None:
    """LSE (T.87 §C.2.4.1): the coding parameters alone; not tables (2, 3), nor another size (4)."""
    if len(segment) != 11 or segment[0] != 1:
        raise DecodeError(f"JPEG-LS parameters (LSE) are of type {segment[:1].hex()}, taken is 01")


def _require_scan(segment: bytes, frame: Codestream, *, is_ls: bool) -> None:
    """SOS (T.81 §B.2.3, T.87 §C.2.3): of components that are there, without a mapping table."""
    count = segment[0] if segment else 0
    if not 1 <= count <= frame.components or len(segment) != 4 + 2 * count:
        raise DecodeError(f"JPEG scan header has {count} components, the frame has {frame.components}")
    if is_ls and (any(segment[2 : 2 + 2 * count : 2]) or segment[-2] > 2):
        raise DecodeError("JPEG-LS scan has a mapping table or an unknown interleave mode, taken are 0 to 2")


def _require_marker(marker: int, allowed: frozenset[int]) -> None:
    if marker not in allowed:
        names = " or ".join(f"ff{value:02x}" for value in sorted(allowed))
        raise DecodeError(f"JPEG frame header is ff{marker:02x}, this transfer syntax has {names}")


def _frame_header(segment: bytes, *, jfif: bool) -> Codestream:
    if len(segment) < 6 or len(segment) != 6 + 3 * segment[5]:
        raise DecodeError(f"JPEG frame header has {len(segment)} bytes, must have 6 and 3 for each component")
    precision, rows, columns, components = struct.unpack_from(">BHHB", segment)
    names = segment[6 : 6 + 3 * components : 3]
    is_rgb = True if names in (b"RGB", b"rgb") else False if jfif else None
    return Codestream(rows, columns, components, precision, is_rgb)
