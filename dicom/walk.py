"""Data elements found in an encoded data set, without building one.

Owns the walk over the top level of a data set up to Pixel Data, in implicit and
explicit VR, little and big endian, encapsulated and deflated (PS3.5 §7, §A.1 to §A.5).
It knows no attribute but Pixel Data and gives values as bytes. Where an encoding
departs from the Standard it is read as pydicom reads it, so that what is decoded later
is what was looked at here.

Security: every byte comes from a peer. Elements, depth, inflated bytes and the length
of a value are bounded; nothing but the wanted values is copied.
"""

import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from dicom.errors import HeaderError

IMPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2"
EXPLICIT_VR_BIG_ENDIAN: Final = "1.2.840.10008.1.2.2"
DEFLATED: Final = frozenset(
    {"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"}
)  # explicit VR little endian; JPIP; JPIP HTJ2K

MAX_ELEMENTS: Final = 1_000_000
"""Elements and items of the top level, and as many of sequences: a second; 10,000 frames have half of it."""
MAX_DEPTH: Final = 32
"""Sequences of undefined length, one in another; real objects have at most about eight."""
MAX_VALUE_BYTES: Final = 1024
"""Longest value that is kept, longer ones are given as empty; none that we read may be half as long."""
MAX_INFLATED_BYTES: Final = 16 * 1024 * 1024
"""What is inflated in search of Pixel Data: 32 peers that send bombs at once must fit in memory."""
FIRST_INFLATED_BYTES: Final = 64 * 1024
"""What is inflated at first; the attributes of nearly every image lie within it."""

_UNDEFINED: Final = 0xFFFFFFFF
_PIXEL_DATA: Final = 0x7FE00010
_ITEM: Final = 0xFFFEE000
_ITEM_END: Final = 0xFFFEE00D
_SEQUENCE_END: Final = 0xFFFEE0DD
_SHORT_VRS: Final = "AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US"
_LONG_VRS: Final = "OB OD OF OL OV OW SQ SV UC UN UR UT UV"  # PS3.5 Table 7.1-1


@dataclass(frozen=True, slots=True)
class Elements:
    """What was found: the wanted values by tag, and where the value of Pixel Data lies.

    `byte_order` is that of the binary numbers among the values. The offset counts from the
    start of the data set and is None where the data set is deflated or has no Pixel Data;
    the length is None where it is undefined (encapsulated).
    """

    values: dict[int, bytes]
    byte_order: Literal["little", "big"] = "little"
    pixel_data_offset: int | None = None
    pixel_data_length: int | None = None


@dataclass(frozen=True, slots=True)
class WalkLimits:
    """What a data set may hold; stricter than the constants, which no setting passes."""

    max_elements: int = MAX_ELEMENTS
    max_depth: int = MAX_DEPTH


NO_OTHER_LIMITS: Final = WalkLimits()


class Wanted:
    """The tags to look for, as each byte order spells them."""

    def __init__(self, tags: Iterable[int]) -> None:
        self.big = {tag: tag for tag in (*tags, _PIXEL_DATA, _ITEM, _ITEM_END, _SEQUENCE_END)}
        self.little = {tag >> 16 | (tag & 0xFFFF) << 16: tag for tag in self.big}


def find(
    data: bytes | memoryview, transfer_syntax_uid: str, wanted: Wanted, limits: WalkLimits = NO_OTHER_LIMITS
) -> Elements:
    """Find the `wanted` elements before Pixel Data.

    Args:
        data: the data set, or its beginning up to anywhere within the value of Pixel Data.
        transfer_syntax_uid: one that is not known here is taken for explicit VR little
            endian, as every encapsulated one is (PS3.5 §A.4).
        wanted: the tags.
        limits: on elements and depth.

    Raises:
        HeaderError: an element is cut short, or is there twice; sequences are not closed; the
            deflated bytes are damaged; one of `limits` or of this module's limits is
            passed.
    """
    if transfer_syntax_uid in DEFLATED:
        return _find_deflated(data, wanted, limits)
    return _walk(data, _ENCODINGS.get(transfer_syntax_uid, _EXPLICIT_LITTLE), wanted, limits)


class _Encoding:
    """How a tag, a VR and a length are written."""

    def __init__(self, *, implicit: bool, byte_order: Literal["little", "big"]) -> None:
        self.implicit = implicit
        self.byte_order = byte_order
        mark = "<" if byte_order == "little" else ">"
        self.element = struct.Struct(f"{mark}IHH").unpack_from  # tag, VR, 16-bit length
        self.long = struct.Struct(f"{mark}I").unpack_from
        self.short = frozenset() if implicit else _spell(_SHORT_VRS, byte_order)
        self.long_vrs = frozenset() if implicit else _spell(_LONG_VRS, byte_order)
        self.unknown = int.from_bytes(b"UN", byte_order)


def _spell(vrs: str, byte_order: Literal["little", "big"]) -> frozenset[int]:
    return frozenset(int.from_bytes(vr.encode(), byte_order) for vr in vrs.split())


_IMPLICIT_LITTLE: Final = _Encoding(implicit=True, byte_order="little")
_EXPLICIT_LITTLE: Final = _Encoding(implicit=False, byte_order="little")
_ENCODINGS: Final[Mapping[str, _Encoding]] = {
    IMPLICIT_VR_LITTLE_ENDIAN: _IMPLICIT_LITTLE,
    EXPLICIT_VR_BIG_ENDIAN: _Encoding(implicit=False, byte_order="big"),
}


def _walk(data: bytes | memoryview, encoding: _Encoding, wanted: Wanted, limits: WalkLimits) -> Elements:
    """Step from element to element; most images need nothing else before their pixels.

    A sequence of defined length is stepped over like any value. This loop is run for
    every element of every image that arrives: its common case comes first.
    """
    values: dict[int, bytes] = {}
    end = len(data)
    tags = wanted.little if encoding.byte_order == "little" else wanted.big
    unpack, unpack_long = encoding.element, encoding.long
    short, long = encoding.short, encoding.long_vrs
    position = start = skipped = 0
    if int.from_bytes(data[:2], encoding.byte_order) < 4 and data:
        # Behind our own meta information, group 0002 would be read as part of it (PS3.10 §7.1).
        raise HeaderError("data set: begins with a group below 0004, which no data set holds (PS3.5 §7.1)")
    try:
        for _ in range(limits.max_elements):
            if position >= end:
                break
            raw_tag, vr, length = unpack(data, position)
            if vr in short:
                start = position + 8
            else:
                if vr in long:
                    start = position + 12
                    (length,) = unpack_long(data, position + 8)
                else:
                    start, length = _without_vr(data, position, length, encoding)
                if length == _UNDEFINED and tags.get(raw_tag) != _PIXEL_DATA:
                    position, used = _skip(data, start, _inner(encoding, vr), limits, skipped)
                    skipped += used
                    if raw_tag in tags:
                        values[tags[raw_tag]] = b""  # that it is there is all that is said of a sequence
                    continue
            position = start + length
            if raw_tag in tags:
                tag = tags[raw_tag]
                if tag == _PIXEL_DATA:
                    pixel_bytes = None if length == _UNDEFINED else length
                    return Elements(values, encoding.byte_order, start, pixel_bytes)
                if tag in values or tag >= _ITEM:
                    raise HeaderError(f"data set: {show(tag)} is there twice, or where it cannot be")
                if position > end:
                    break
                values[tag] = bytes(data[start:position]) if length <= MAX_VALUE_BYTES else b""
        else:
            raise _too_many(limits)
    except struct.error:
        raise _cut_short(position, end) from None
    if position > end:
        raise _cut_short(start, end)
    return Elements(values, encoding.byte_order)


def _skip(
    data: bytes | memoryview, position: int, encoding: _Encoding, limits: WalkLimits, skipped: int
) -> tuple[int, int]:
    """Step over a sequence of undefined length (PS3.5 §7.5), without recursion.

    Returns:
        The position behind its Sequence Delimitation Item, and the number of elements walked.
    """
    end = len(data)
    sequences = [encoding]  # those that are open, each with the encoding of its items
    in_item = False
    for used in range(1, limits.max_elements - skipped + 1):
        if position >= end:
            break
        encoding = sequences[-1]
        raw_tag, vr, length = encoding.element(data, position)
        tag = raw_tag if encoding.byte_order == "big" else raw_tag >> 16 | (raw_tag & 0xFFFF) << 16
        start = position + 8
        if tag >= _ITEM:
            (length,) = encoding.long(data, position + 4)
            if tag == _ITEM and not in_item:
                in_item = length == _UNDEFINED
                position = start if in_item else start + length
            elif tag == _ITEM_END and in_item:
                in_item = False
                position = start
            elif tag == _SEQUENCE_END and not in_item:
                sequences.pop()
                if not sequences:
                    return start, used
                in_item = True
                position = start
            else:
                raise HeaderError(f"data set: {show(tag)} at byte {position}, where it cannot be")
            continue
        if not in_item:
            raise HeaderError(f"data set: {show(tag)} at byte {position}, where an item must be")
        if vr in encoding.long_vrs:
            (length,) = encoding.long(data, start)
            start += 4
        elif vr not in encoding.short:
            start, length = _without_vr(data, position, length, encoding)
        if length == _UNDEFINED:
            if len(sequences) == limits.max_depth:
                raise HeaderError(f"data set: sequences more than {limits.max_depth} deep at byte {position}")
            sequences.append(_inner(encoding, vr))
            in_item = False
            position = start
        else:
            position = start + length
    else:
        raise _too_many(limits)
    raise _cut_short(position, end)


def _without_vr(
    data: bytes | memoryview, position: int, short_length: int, encoding: _Encoding
) -> tuple[int, int]:
    """Where the value begins, and its length, in implicit VR or where the VR is not a known one."""
    start = position + 8
    if not encoding.implicit and b"AA" <= bytes(data[position + 4 : position + 6]) <= b"ZZ":
        return start, short_length  # Off-spec, as pydicom: a VR that nobody knows has a 16-bit length
    (length,) = encoding.long(data, position + 4)  # Off-spec in explicit VR: some writers drop the VR
    return start, length


def _inner(encoding: _Encoding, vr: int) -> _Encoding:
    # UN of undefined length holds items in implicit VR little endian (PS3.5 §6.2.2, note 2).
    return _IMPLICIT_LITTLE if not encoding.implicit and vr == encoding.unknown else encoding


def _find_deflated(data: bytes | memoryview, wanted: Wanted, limits: WalkLimits) -> Elements:
    """Inflate (RFC 1951), twice as much each time, until Pixel Data or the end is in it."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = bytearray()
    taken = 0
    target = FIRST_INFLATED_BYTES
    while True:
        try:
            while len(inflated) < target and not inflater.eof:
                piece = inflater.unconsumed_tail
                if not piece:  # piece by piece: what one call leaves over, zlib copies
                    piece = bytes(data[taken : taken + FIRST_INFLATED_BYTES])
                    taken += len(piece)
                    if not piece:
                        raise HeaderError("data set: the deflated bytes are cut short")
                inflated += inflater.decompress(piece, target - len(inflated))
        except zlib.error as error:
            raise HeaderError(f"data set: cannot be inflated: {error}") from error
        try:
            elements = _walk(bytes(inflated), _EXPLICIT_LITTLE, wanted, limits)
        except HeaderError:
            if inflater.eof:
                raise
        else:
            if inflater.eof or elements.pixel_data_offset is not None:
                return Elements(elements.values)
        if target >= MAX_INFLATED_BYTES:
            raise HeaderError(f"data set: no Pixel Data in the first {MAX_INFLATED_BYTES} inflated bytes")
        target *= 2


def show(tag: int) -> str:
    """A tag as the Standard writes it: (gggg,eeee)."""
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


def _cut_short(position: int, end: int) -> HeaderError:
    return HeaderError(f"data set: the element at byte {position} goes beyond the end, at byte {end}")


def _too_many(limits: WalkLimits) -> HeaderError:
    return HeaderError(f"data set: more than {limits.max_elements} elements before Pixel Data")
