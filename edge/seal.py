"""The seal of a received file: by it a whole file is told from a torn one, whatever its name.

Owns the private information that we keep in a file's meta information (PS3.10 §7.1,
(0002,0102)): the length of the data set and its CRC-32. It is zeros while the instance is
received and written last, so that a file that a power cut left half written is not sealed,
or does not agree with its seal. Of bytes that someone changed on purpose it says nothing.
"""

import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from dicom.errors import HeaderError
from dicom.part10 import MAX_META_BYTES, FileMeta, read_meta

UNSEALED: Final = bytes(12)
Crc32 = Callable[[memoryview, int], int]
"""Continues a CRC-32 (that of `zlib.crc32`), given the next bytes and what it is up to now."""

_SEAL: Final = struct.Struct("<QI")
_READ_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Sealed:
    """A file that is whole; `checksum` is the CRC-32 of its data set."""

    meta: FileMeta
    size_bytes: int
    checksum: int


def fast_crc32() -> Crc32:
    """The fastest CRC-32 here: with the processor's carry-less multiplication ten times zlib's speed."""
    try:
        from imagecodecs import deflate_crc32  # noqa: PLC0415 (its import costs what only a receiver wins back)

        deflate_crc32(b"")
    except ImportError:  # built without it
        return zlib.crc32
    return deflate_crc32  # type: ignore[return-value]  # it takes memoryviews too


def seal(dataset_bytes: int, checksum: int) -> bytes:
    """What takes the place of `UNSEALED`."""
    return _SEAL.pack(dataset_bytes, checksum)


def read_sealed(handle: int) -> Sealed | None:
    """Read an open file and hold it against its seal; None: it is not what was sealed, or never was.

    Raises:
        OSError: it cannot be read.
    """
    try:
        meta = read_meta(os.pread(handle, MAX_META_BYTES, 0))
    except HeaderError:
        return None
    if len(meta.private_information) != _SEAL.size or meta.private_information == UNSEALED:
        return None
    dataset_bytes, checksum = _SEAL.unpack(meta.private_information)
    end = meta.dataset_offset + dataset_bytes
    if os.fstat(handle).st_size != end:
        return None
    found, position = 0, meta.dataset_offset
    while position < end:
        data = os.pread(handle, _READ_BYTES, position)
        if not data:
            return None
        found = zlib.crc32(data, found)
        position += len(data)
    return Sealed(meta, end, checksum) if found == checksum else None
