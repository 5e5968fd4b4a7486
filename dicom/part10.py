"""The File Meta Information of a DICOM file (PS3.10 §7.1): written for what we store, read for what we send.

Owns group 0002 and nothing of the data set. What is written begins with a preamble of
zeros: the preamble that a sender may have had can hold another file format's header
(PS3.10 §7.5) and is never kept.

Security: `read_meta` reads what others wrote; it looks at no more than MAX_META_BYTES.
"""

import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dicom.errors import HeaderError
from dicom.uid import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, is_valid

PREAMBLE: Final = bytes(128)
PREFIX: Final = b"DICM"
MAX_META_BYTES: Final = 32 * 1024
"""File Meta Information is some 300 bytes; private information in it may make it longer."""

_LONG_VRS: Final = frozenset(
    (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT")
)
_ELEMENT: Final = struct.Struct("<HH2sH")
_LONG: Final = struct.Struct("<I")
_GZIP: Final = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class FileMeta:
    """The attributes of group 0002 that say what the file holds; absent text is empty."""

    transfer_syntax_uid: str
    media_storage_sop_class_uid: str
    media_storage_sop_instance_uid: str
    source_ae_title: str
    dataset_offset: int
    """Where the data set begins, in bytes from the start of the file."""
    private_information: bytes = b""
    """(0002,0102), where (0002,0100) says that it is ours."""


@dataclass(frozen=True, slots=True)
class InstanceFile:
    """A file that can be sent as it is: its meta information, and its data set's length in bytes."""

    path: Path
    meta: FileMeta
    dataset_bytes: int

    def chunks(self, size_bytes: int = 1024 * 1024) -> Iterator[bytes]:
        """The encoded data set, in pieces of `size_bytes`; the last one is shorter.

        Raises:
            OSError: the file cannot be read.
        """
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.meta.dataset_offset)
            while piece := file.read(size_bytes):
                yield piece


def file_meta(
    sop_class_uid: str,
    sop_instance_uid: str,
    transfer_syntax_uid: str,
    calling_ae_title: str,
    private_information: bytes = b"",
) -> bytes:
    """What stands before the data set of a file that we store: preamble, prefix, group 0002.

    Private information, of an even length, is the end of it: who keeps a number there can write it
    when it is known.

    Raises:
        ValueError: one of the UIDs is none, or the AE title is longer than 16 ASCII characters.
    """
    for uid in (sop_class_uid, sop_instance_uid, transfer_syntax_uid):
        if not is_valid(uid):
            raise ValueError(f"file meta information: {uid!r} is not a UID (PS3.5 §9.1)")
    if len(calling_ae_title) > 16 or not calling_ae_title.isascii():
        raise ValueError("file meta information: an AE title has at most 16 ASCII characters")
    group = b"".join(
        [
            _ELEMENT.pack(2, 0x0001, b"OB", 0) + _LONG.pack(2) + b"\x00\x01",
            _text(0x0002, b"UI", sop_class_uid),
            _text(0x0003, b"UI", sop_instance_uid),
            _text(0x0010, b"UI", transfer_syntax_uid),
            _text(0x0012, b"UI", IMPLEMENTATION_CLASS_UID),
            _text(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME),
            _text(0x0016, b"AE", calling_ae_title) if calling_ae_title else b"",
        ]
    )
    if private_information:
        group += _text(0x0100, b"UI", IMPLEMENTATION_CLASS_UID)
        group += (
            _ELEMENT.pack(2, 0x0102, b"OB", 0) + _LONG.pack(len(private_information)) + private_information
        )
    length = _ELEMENT.pack(2, 0x0000, b"UL", 4) + _LONG.pack(len(group))
    return PREAMBLE + PREFIX + length + group


def read_meta(data: bytes) -> FileMeta:
    """The meta information at the start of a file, of which `data` is the beginning or all.

    Raises:
        HeaderError: which part is missing, or broken: preamble, prefix, Transfer Syntax UID.
    """
    if data[128:132] != PREFIX:
        raise HeaderError(f"file: {_what_instead(data)} (PS3.10 §7.1)")
    end = min(len(data), MAX_META_BYTES)
    position = 132
    values: dict[int, bytes] = {}
    while position + 8 <= end:
        group, element, vr, length = _ELEMENT.unpack_from(data, position)
        if group != 2:
            break
        start = position + 8
        if vr in _LONG_VRS:
            if start + 4 > end:
                raise _cut_short(element)
            (length,) = _LONG.unpack_from(data, start)
            start += 4
        if start + length > end:
            raise _cut_short(element)
        if element in values:
            raise HeaderError(f"file meta information: (0002,{element:04X}) is there twice")
        values[element] = data[start : start + length]
        position = start + length
    return FileMeta(
        transfer_syntax_uid=_transfer_syntax(values),
        media_storage_sop_class_uid=_read(values, 0x0002),
        media_storage_sop_instance_uid=_read(values, 0x0003),
        source_ae_title=_read(values, 0x0016),
        dataset_offset=position,
        private_information=(
            values.get(0x0102, b"") if _read(values, 0x0100) == IMPLEMENTATION_CLASS_UID else b""
        ),
    )


def open_instance(path: Path) -> InstanceFile:
    """Look at a file that is to be sent.

    Raises:
        HeaderError: it is not a DICOM file; the message says what is missing.
        OSError: it cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        meta = read_meta(file.read(MAX_META_BYTES))
        return InstanceFile(path, meta, os.fstat(file.fileno()).st_size - meta.dataset_offset)


def _text(element: int, vr: bytes, value: str) -> bytes:
    raw = value.encode("ascii")
    if len(raw) % 2:
        raw += b"\0" if vr == b"UI" else b" "
    return _ELEMENT.pack(2, element, vr, len(raw)) + raw


def _transfer_syntax(values: Mapping[int, bytes]) -> str:
    uid = _read(values, 0x0010)
    if not values:
        raise HeaderError("file: no File Meta Information follows the prefix DICM (PS3.10 §7.1)")
    if not uid:
        raise HeaderError("file meta information: (0002,0010) Transfer Syntax UID is missing")
    if not is_valid(uid):
        raise HeaderError("file meta information: (0002,0010) Transfer Syntax UID is not a UID")
    return uid


def _read(values: Mapping[int, bytes], element: int) -> str:
    text = values.get(element, b"").strip(b"\0 ").decode("ascii", "replace")
    return text if len(text) <= 64 and text.isprintable() else ""


def _what_instead(data: bytes) -> str:
    if data.startswith(_GZIP):
        return "compressed with gzip: unpack it first"
    if data.startswith((PREFIX, b"\x02\x00")):
        return "the preamble of 128 bytes before the prefix DICM is missing"
    if not data:
        return "empty"
    return "no prefix DICM at byte 128: not a DICOM file, or preamble and meta information are missing"


def _cut_short(element: int) -> HeaderError:
    return HeaderError(
        f"file meta information: (0002,{element:04X}) goes beyond {MAX_META_BYTES} bytes or the end"
    )
