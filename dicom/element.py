"""Data elements and files as bytes, in explicit VR little endian.

Owns the encoding of the results that the appliance writes (PS3.5 §7.1.2, §7.5, §A.2; PS3.10
§7.1). It knows keywords and value representations, not modules: those are in `dicom.composite`
and in the module of each result. Why not a pydicom `Dataset`: a report of 200 images has 3,000
elements and a segmentation 6,000; written here they cost a few milliseconds, and the same values
give the same bytes by construction.
"""

import struct
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import lru_cache
from itertools import pairwise
from typing import Final

from pydicom.datadict import dictionary_VR, tag_for_keyword

from dicom.results import Code
from dicom.uid import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

EXPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2.1"
UTF_8: Final = "ISO_IR 192"

_SHORT: Final = struct.Struct("<HH2sH")
_LONG: Final = struct.Struct("<HH2sHI")
_ITEM: Final = struct.Struct("<HHI")
_LONG_VRS: Final = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"})
_NUMBERS: Final = {"US": "<H", "UL": "<I", "SS": "<h", "SL": "<i", "FL": "<f", "FD": "<d"}
_MAX_CHARACTERS: Final = {
    "SH": 16, "LO": 64, "PN": 64, "ST": 1024, "LT": 10_240, "UC": 256, "UT": 65_536,
}  # fmt: skip
"""PS3.5 §6.2; UC and UT have no limit there: no code value or text of ours is longer than this."""
_ONE_VALUE_ONLY: Final = frozenset({"ST", "LT", "UT"})  # the backslash is a character there
_ASCII_VRS: Final = frozenset({"AE", "AS", "CS", "DA", "DS", "DT", "IS", "TM"})
_AMBIGUOUS: Final = {"PixelData": "OB"}  # OB or OW: all of ours have at most eight bits allocated
_CONTROL: Final = dict.fromkeys(range(32), " ")
_CONTROL_IN_TEXT: Final = {code: " " for code in range(32) if code not in {9, 10, 13}}
"""Control characters become spaces; line ends and tabs may stand in ST, LT and UT."""

Value = str | int | float | bytes


class Encoder:
    """Encodes elements by keyword; text in one character set.

    `encode("PatientSex", "F")` gives one element; a sequence takes the content of its items,
    each made by `data_set`. Text is cut to the length that its value representation allows.
    """

    def __init__(self, character_set: str, codec: str) -> None:
        """`character_set` is the value of (0008,0005), "" for the default; `codec` Python's name of it."""
        self.character_set = character_set
        self._codec = codec
        self._codes: dict[Code, bytes] = {}

    def __call__(self, keyword: str, *values: Value) -> bytes:
        """One element; no value at all gives an empty one (type 2).

        Raises:
            UnicodeEncodeError: a text has a character that this character set lacks.
            ValueError: the keyword is unknown, or a value does not fit its value representation.
        """
        tag, vr = _entry(keyword)
        return _element(tag, vr, self._value(keyword, vr, values))

    def copied(self, keyword: str, raw: bytes) -> bytes:
        """One element whose value is already encoded in this character set."""
        tag, vr = _entry(keyword)
        return _element(tag, vr, raw + b" " if len(raw) % 2 else raw)

    def code(self, code: Code) -> bytes:
        """The content of one item of a code sequence (PS3.3 Table 8.8-1)."""
        if code not in self._codes:
            value = "CodeValue" if len(code.value) <= 16 else "LongCodeValue"
            self._codes[code] = data_set(
                self(value, code.value),
                self("CodingSchemeDesignator", code.scheme),
                self("CodeMeaning", code.meaning),
            )
        return self._codes[code]

    def _value(self, keyword: str, vr: str, values: tuple[Value, ...]) -> bytes:
        if vr == "SQ":
            return b"".join(_ITEM.pack(0xFFFE, 0xE000, len(item)) + item for item in map(_bytes, values))
        if vr in _NUMBERS:
            return b"".join(struct.pack(_NUMBERS[vr], value) for value in values)
        if vr == "AT":
            return b"".join(struct.pack("<HH", int(v) >> 16, int(v) & 0xFFFF) for v in values)
        if vr in {"OB", "OW"}:
            return b"".join(map(_bytes, values))
        if vr == "UI":
            return _padded("\\".join(map(str, values)).encode("ascii"), b"\0")
        if vr in _ASCII_VRS:
            text = "\\".join(decimal(v) if isinstance(v, float) else str(v) for v in values)
            if vr == "CS" and any(len(part) > 16 for part in text.split("\\")):
                raise ValueError(f"{keyword}: a code string of {len(text)} characters, allowed 16")
            return _padded(text.encode("ascii"), b" ")
        return self._text(vr, values)

    def _text(self, vr: str, values: tuple[Value, ...]) -> bytes:
        control = _CONTROL_IN_TEXT if vr in _ONE_VALUE_ONLY else _CONTROL
        texts = [str(value).translate(control)[: _MAX_CHARACTERS[vr]] for value in values]
        if vr not in _ONE_VALUE_ONLY:
            texts = [text.replace("\\", "/") for text in texts]
        text = "\\".join(texts)
        # Every character set of the Standard has ASCII in its initial G0 element.
        return _padded(text.encode("ascii" if text.isascii() else self._codec), b" ")


def data_set(*elements: bytes) -> bytes:
    """The elements in the order of their tags.

    Raises:
        ValueError: a tag is there twice.
    """
    ordered = sorted(elements, key=_tag)
    for first, second in pairwise(ordered):
        if first[:4] == second[:4]:
            raise ValueError(f"element ({_tag(first)[0]:04X},{_tag(first)[1]:04X}) is there twice")
    return b"".join(ordered)


def pixel_data(parts: Sequence[bytes]) -> tuple[bytes, ...]:
    """(7FE0,0010) of native bytes as its head, its parts and its padding: large values are not copied."""
    tag, vr = _entry("PixelData")
    length = sum(map(len, parts))
    head = _LONG.pack(tag >> 16, tag & 0xFFFF, vr.encode("ascii"), 0, length + length % 2)
    return (head, *parts, b"\0" * (length % 2))


def file_format(sop_class_uid: str, sop_instance_uid: str, data: Iterable[bytes]) -> bytes:
    """A whole file: preamble, prefix, File Meta Information, then the parts of the data set (PS3.10 §7.1)."""
    encode = Encoder("", "ascii")
    meta = data_set(
        encode("FileMetaInformationVersion", b"\x00\x01"),
        encode("MediaStorageSOPClassUID", sop_class_uid),
        encode("MediaStorageSOPInstanceUID", sop_instance_uid),
        encode("TransferSyntaxUID", EXPLICIT_VR_LITTLE_ENDIAN),
        encode("ImplementationClassUID", IMPLEMENTATION_CLASS_UID),
        encode("ImplementationVersionName", IMPLEMENTATION_VERSION_NAME),
    )
    length = encode("FileMetaInformationGroupLength", len(meta))
    return b"".join([bytes(128), b"DICM", length, meta, *data])


def in_character_set(source: Encoder, build: Callable[[Encoder], bytes]) -> bytes:
    """What `build` makes in the character set of `source`, or in UTF-8 when a text does not fit that one."""
    try:
        return build(source)
    except UnicodeEncodeError:
        return build(Encoder(UTF_8, "utf-8"))


def decimal(value: float) -> str:
    """A decimal string (DS) of at most 16 characters that is as near to `value` as these allow.

    Raises:
        ValueError: not a finite number.
    """
    if value - value != 0:
        raise ValueError(f"decimal string: {value} is not finite")
    text = repr(float(value)).removesuffix(".0")
    digits = 16
    while len(text) > 16:
        digits -= 1
        text = f"{value:.{digits}g}"
    return text


def date_of(moment: datetime) -> str:
    """A DA value."""
    return moment.strftime("%Y%m%d")


def time_of(moment: datetime) -> str:
    """A TM value, with microseconds."""
    return moment.strftime("%H%M%S.%f")


@lru_cache(maxsize=1024)
def _entry(keyword: str) -> tuple[int, str]:
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise ValueError(f"{keyword}: not a keyword of PS3.6")
    return tag, _AMBIGUOUS.get(keyword) or dictionary_VR(tag)


def _element(tag: int, vr: str, value: bytes) -> bytes:
    group, number, name = tag >> 16, tag & 0xFFFF, vr.encode("ascii")
    if vr in _LONG_VRS:
        return _LONG.pack(group, number, name, 0, len(value)) + value
    return _SHORT.pack(group, number, name, len(value)) + value


def _tag(element: bytes) -> tuple[int, int]:
    return int.from_bytes(element[0:2], "little"), int.from_bytes(element[2:4], "little")


def _padded(value: bytes, pad: bytes) -> bytes:
    return value + pad if len(value) % 2 else value


def _bytes(value: Value) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError(f"{type(value).__name__} given, bytes needed")
    return value
