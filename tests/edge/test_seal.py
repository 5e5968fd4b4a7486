"""The seal: a file agrees with it or is not whole, and the fast CRC-32 is CRC-32."""

import os
import random
import zlib
from pathlib import Path

import pytest

from dicom.part10 import file_meta, read_meta
from edge.seal import UNSEALED, fast_crc32, read_sealed, seal

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
DATA = bytes(range(256)) * 10


def sealed_file(path: Path, mark: bytes) -> Path:
    path.write_bytes(file_meta(CT, "1.2.3", EXPLICIT, "AE", mark) + DATA)
    return path


@pytest.mark.parametrize(
    ("mark", "is_whole"),
    [
        (seal(len(DATA), zlib.crc32(DATA)), True),
        (UNSEALED, False),
        (seal(len(DATA) - 1, zlib.crc32(DATA)), False),
        (seal(len(DATA), zlib.crc32(DATA) ^ 1), False),
        (b"", False),
        (b"12", False),
    ],
)
def test_a_file_is_whole_when_it_agrees_with_its_seal(tmp_path: Path, mark: bytes, is_whole: bool) -> None:
    handle = os.open(sealed_file(tmp_path / "file", mark), os.O_RDONLY)
    found = read_sealed(handle)
    os.close(handle)
    assert (found is not None) == is_whole
    if found is not None:
        assert found.checksum == zlib.crc32(DATA)
        assert found.meta.media_storage_sop_instance_uid == "1.2.3"
        assert found.size_bytes == found.meta.dataset_offset + len(DATA)


def test_a_sealed_file_cut_at_any_length_is_not_whole(tmp_path: Path) -> None:
    path = sealed_file(tmp_path / "file", seal(len(DATA), zlib.crc32(DATA)))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        handle = os.open(path, os.O_RDONLY)
        assert read_sealed(handle) is None, length
        os.close(handle)


def test_the_seal_is_the_end_of_the_meta_information() -> None:
    mark = seal(7, 8)
    meta = file_meta(CT, "1.2.3", EXPLICIT, "AE", mark)
    assert meta.endswith(mark)
    assert read_meta(meta + b"\x08\x00").dataset_offset == len(meta)


def test_the_fast_checksum_is_crc_32_in_pieces_and_of_memory(tmp_path: Path) -> None:
    crc32 = fast_crc32()
    data = random.Random(1).randbytes(100_001)
    view, found, at = memoryview(bytearray(data)), 0, 0
    for length in (0, 1, 7, 64, 4096, 65_536, 100_001):
        piece = view[at : at + length]
        found = crc32(piece, found)
        at += len(piece)
        assert found == zlib.crc32(data[:at])
    assert at == len(data)
