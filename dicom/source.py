"""The study that a result belongs to: what of its patient and study modules a result repeats.

Owns the reading of these attributes from one source instance and their sanitising; decodes no
pixel. A result must be stored beside its source, so attributes that an archive files by
(Patient ID, its issuer, Accession Number, Study ID) are repeated exactly, even when they break
a rule; what is only shown is made valid; a date or time that is none is left empty. Implements PS3.3
§C.7.1.1, §C.7.2.1, §C.7.2.2 for results, and PS3.5 §6.1, §7.1 for reading.

Security: every byte comes from a peer; `dicom.walk` bounds what is read, and values longer than it
gives are taken for absent.
"""

import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pydicom.charset import python_encoding

from dicom.charset import decode_text
from dicom.element import UTF_8, Encoder
from dicom.errors import HeaderError
from dicom.header import InstanceHeader
from dicom.part10 import MAX_META_BYTES, read_meta
from dicom.results import Code
from dicom.validity import RULES, printable
from dicom.walk import IMPLICIT_VR_LITTLE_ENDIAN, Wanted, find

MAX_CHARACTER_SETS: Final = 6
"""Terms of (0008,0005); Japanese uses three."""


@dataclass(frozen=True)
class SourceSeries:
    """The input of a result; made by `read_source`, and opaque to all but the modules of results."""

    headers: tuple[InstanceHeader, ...]
    """In slice order."""
    character_set: str
    """(0008,0005) that a result may keep; "" when the source has only ASCII or nothing usable."""
    values: Mapping[str, str] = field(repr=False)
    """Keyword to sanitised value, "" where the source has none. Patient data: not for logs."""
    raw: Mapping[str, bytes] = field(repr=False)
    """Keyword to the value as it is encoded in the source, where `character_set` can keep it."""
    procedures: tuple[Code, ...] = ()

    def encoder(self) -> Encoder:
        """An encoder in the source's character set, or in UTF-8 where that one cannot be kept."""
        if not self.character_set and not all(value.isascii() for value in self.values.values()):
            return Encoder(UTF_8, "utf-8")
        term = self.character_set
        # Text of ours that is not ASCII makes a result UTF-8, unless a set of one byte a character has it.
        plain = term.startswith("ISO_IR ") and term != "ISO_IR 13" and "\\" not in term
        return Encoder(term, python_encoding[term] if plain else "ascii")

    def copy(self, encode: Encoder, keyword: str) -> bytes:
        """The element as the source has it, empty when it has none (type 2)."""
        if encode.character_set == self.character_set and keyword in self.raw:
            return encode.copied(keyword, self.raw[keyword])
        value = self.values.get(keyword, "")
        return encode.copied(keyword, value.encode(_codec_of(encode)))

    def copy_if_present(self, encode: Encoder, *keywords: str) -> list[bytes]:
        """Those of the elements that the source has with a value (type 3)."""
        return [self.copy(encode, keyword) for keyword in keywords if self.values.get(keyword)]


def read_source(files: Sequence[tuple[Path, InstanceHeader]]) -> SourceSeries:
    """The patient and study attributes of the first file, with the headers of all.

    Args:
        files: the instances of one series that a model saw, in slice order.

    Raises:
        HeaderError: the first file's data set cannot be walked through.
        OSError: it cannot be read.
        ValueError: no file is given.
    """
    if not files:
        raise ValueError("read_source: no file given")
    found = _attributes(files[0][0])
    character_set, usable = _character_set(found.get(_CHARACTER_SET, b""))
    values: dict[str, str] = {}
    raw: dict[str, bytes] = {}
    for tag, keyword in _TAGS.items():
        stripped = found.get(tag, b"").strip(b"\0 ")
        text, exact = _decode(stripped, character_set)
        value = RULES[keyword](text)
        usable = usable and exact
        values[keyword] = value
        if value == text:
            raw[keyword] = stripped
        elif not value.isascii():
            usable = False  # a shortened text must be written anew
    if not usable:
        raw = {keyword: value for keyword, value in raw.items() if value.isascii() and b"\x1b" not in value}
    return SourceSeries(
        headers=tuple(header for _, header in files),
        character_set=character_set if usable and character_set else "",
        values=values,
        raw=raw,
        procedures=_procedures(found, character_set),
    )


# Reading the file


def _attributes(path: Path) -> dict[int, bytes]:
    """The encoded values by tag."""
    with path.open("rb") as file:
        meta = read_meta(file.read(MAX_META_BYTES))
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
            data = view[meta.dataset_offset :]
            try:
                elements = find(data, meta.transfer_syntax_uid, _WANTED)
            finally:
                data.release()
    if elements.byte_order == "big":  # its texts read the same; its sequences are not worth a second parser
        return {tag: value for tag, value in elements.values.items() if tag not in _PROCEDURES}
    return {**elements.values, _EXPLICIT: bytes([meta.transfer_syntax_uid != IMPLICIT_VR_LITTLE_ENDIAN])}


def _procedures(found: Mapping[int, bytes], character_set: str) -> tuple[Code, ...]:
    """The codes of the procedure, as far as they can be read; a report names the modality's else."""
    syntax = "" if found.get(_EXPLICIT) == b"\1" else IMPLICIT_VR_LITTLE_ENDIAN
    codes = []
    for item in _items(next((found[tag] for tag in _PROCEDURES if found.get(tag)), b"")):
        try:
            values = find(item, syntax, _CODE).values
        except HeaderError:
            break  # a code that cannot be read is no reason to have no result
        texts = [
            printable(_decode(values.get(tag, b"").strip(b"\0 "), character_set)[0]) for tag in _CODE_TAGS
        ]
        value, long_value, scheme, meaning = texts
        if (value or long_value) and scheme and meaning and len(scheme) <= 16:
            codes.append(Code(value or long_value, scheme, meaning[:64]))
    return tuple(codes)


def _items(sequence: bytes) -> Iterator[bytes]:
    """The content of each item of a sequence in little endian (PS3.5 §7.5), up to what is malformed."""
    offset = 0
    while sequence[offset : offset + 4] == b"\xfe\xff\x00\xe0":
        length = int.from_bytes(sequence[offset + 4 : offset + 8], "little")
        start = offset + 8
        if length == 0xFFFFFFFF:
            end = sequence.find(_ITEM_DELIMITATION, start)
            offset = end + len(_ITEM_DELIMITATION)
            if end < 0:
                return
        else:
            end = offset = start + length
        yield sequence[start:end]


# Character sets


def _character_set(raw: bytes) -> tuple[str, bool]:
    """(0008,0005) as one text, and whether every term of it is known."""
    terms = [term.strip() for term in raw.strip(b"\0 ").decode("ascii", "replace").split("\\")]
    if terms == ["ISO_IR 6"]:  # not a Defined Term, but what it means is the default
        return "", True
    known = all(term in python_encoding for term in terms) and len(terms) <= MAX_CHARACTER_SETS
    return ("\\".join(terms), True) if known else ("", False)


def _decode(raw: bytes, character_set: str) -> tuple[str, bool]:
    """The text of a value, and whether that is what its character set says (PS3.5 §6.1.2)."""
    if raw.isascii() and b"\x1b" not in raw:
        return raw.decode("ascii"), True
    if character_set:
        text = decode_text(raw, character_set.encode("ascii"))
        if "\N{REPLACEMENT CHARACTER}" not in text:
            return text, True
    # Off-spec: devices send UTF-8 or Latin-1 without saying so; a readable name beats none.
    try:
        return raw.decode("utf-8"), False
    except UnicodeDecodeError:
        return decode_text(raw, b""), False


def _codec_of(encode: Encoder) -> str:
    return "utf-8" if encode.character_set == UTF_8 else "ascii"


_TAGS: Final = {
    0x00080020: "StudyDate",
    0x00080030: "StudyTime",
    0x00080050: "AccessionNumber",
    0x00080090: "ReferringPhysicianName",
    0x00080201: "TimezoneOffsetFromUTC",
    0x00081030: "StudyDescription",
    0x00100010: "PatientName",
    0x00100020: "PatientID",
    0x00100021: "IssuerOfPatientID",
    0x00100030: "PatientBirthDate",
    0x00100040: "PatientSex",
    0x00101010: "PatientAge",
    0x00101020: "PatientSize",
    0x00101030: "PatientWeight",
    0x00120062: "PatientIdentityRemoved",
    0x00120063: "DeidentificationMethod",
    0x00180015: "BodyPartExamined",
    0x00200010: "StudyID",
    0x00200020: "PatientOrientation",
    0x00201040: "PositionReferenceIndicator",
    0x00282110: "LossyImageCompression",
    0x00282112: "LossyImageCompressionRatio",
    0x00282114: "LossyImageCompressionMethod",
}
_CHARACTER_SET: Final = 0x00080005
_EXPLICIT: Final = -1  # no tag: whether the sequences are in explicit VR
_PROCEDURES: Final = (0x00081032, 0x00321064)  # Procedure Code, Requested Procedure Code Sequence
_CODE_TAGS: Final = (0x00080100, 0x00080119, 0x00080102, 0x00080104)
_ITEM_DELIMITATION: Final = b"\xfe\xff\x0d\xe0\0\0\0\0"
_WANTED: Final = Wanted((*_TAGS, *_PROCEDURES, _CHARACTER_SET))
_CODE: Final = Wanted(_CODE_TAGS)
