"""File Meta Information: what we write others read; what others write cannot hurt."""

import subprocess
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.filereader import read_file_meta_info

from dicom.errors import HeaderError
from dicom.part10 import MAX_META_BYTES, FileMeta, InstanceFile, file_meta, open_instance, read_meta
from dicom.uid import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from tests.material import MATERIAL, needs_material

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
META = file_meta(CT, "1.2.3", EXPLICIT, "SCANNER 1")
DCMFTEST = Path("/usr/bin/dcmftest")
needs_dcmtk = pytest.mark.skipif(not DCMFTEST.is_file(), reason="dcmtk is not installed")


def test_what_we_write_pydicom_reads(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(META)
    meta = read_file_meta_info(path)
    assert meta.FileMetaInformationVersion == b"\x00\x01"
    assert meta.MediaStorageSOPClassUID == CT
    assert meta.MediaStorageSOPInstanceUID == "1.2.3"
    assert meta.TransferSyntaxUID == EXPLICIT
    assert meta.ImplementationClassUID == IMPLEMENTATION_CLASS_UID
    assert meta.ImplementationVersionName == IMPLEMENTATION_VERSION_NAME
    assert meta.SourceApplicationEntityTitle == "SCANNER 1"
    assert meta.FileMetaInformationGroupLength == len(META) - 128 - 4 - 12
    assert list(meta.keys()) == sorted(meta.keys())


@needs_dcmtk
def test_what_we_write_dcmtk_takes_for_a_dicom_file(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(META + b"\x08\x00\x16\x00UI\x1a\x00" + CT.encode() + b"\0")
    run = subprocess.run([DCMFTEST, path], capture_output=True, check=False)
    assert run.stdout.startswith(b"yes:")


def test_the_preamble_is_zeros_and_every_length_is_even() -> None:
    assert META[:132] == bytes(128) + b"DICM"
    for uid in ("1.2", "1.23", "1.234"):
        for title in ("A", "AB", ""):
            assert len(file_meta(uid, uid, uid, title)) % 2 == 0


def test_what_we_write_is_read_back_with_the_offset_of_what_follows() -> None:
    for tail in (b"", b"\x08\x00\x16\x00UI\x00\x00", bytes(100_000)):
        assert read_meta(META + tail) == FileMeta(EXPLICIT, CT, "1.2.3", "SCANNER 1", len(META))


def test_without_an_ae_title_there_is_no_source_ae_title() -> None:
    assert read_meta(file_meta(CT, "1.2.3", EXPLICIT, "")).source_ae_title == ""
    assert b"AE" not in file_meta(CT, "1.2.3", EXPLICIT, "")


@pytest.mark.parametrize("bad", ["", "1.2/3", "../x", "1" * 65, "1.2\0"])
def test_no_file_is_begun_for_what_is_no_uid(bad: str) -> None:
    for uids in ((bad, "1.2", "1.2"), ("1.2", bad, "1.2"), ("1.2", "1.2", bad)):
        with pytest.raises(ValueError, match="is not a UID"):
            file_meta(*uids, "AE")


@pytest.mark.parametrize("bad", ["SEVENTEENLETTERS!", "MÜNCHEN"])
def test_no_file_is_begun_for_an_ae_title_that_is_none(bad: str) -> None:
    with pytest.raises(ValueError, match="at most 16 ASCII"):
        file_meta(CT, "1.2", EXPLICIT, bad)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "file: empty"),
        (b"\x1f\x8b\x08" + bytes(200), "compressed with gzip"),
        (META[128:], "the preamble of 128 bytes before the prefix DICM is missing"),
        (META[132:], "the preamble of 128 bytes before the prefix DICM is missing"),
        (b"\x08\x00\x05\x00CS" + bytes(200), "no prefix DICM at byte 128"),
        (bytes(500), "no prefix DICM at byte 128"),
        (bytes(128) + b"DICM", "no File Meta Information follows the prefix DICM"),
        (META[:132] + b"\x08\x00\x16\x00UI\x00\x00", "no File Meta Information follows"),
        (META.replace(b"\x10\x00UI", b"\x11\x00UI"), "(0002,0010) Transfer Syntax UID is missing"),
        (META.replace(EXPLICIT.encode(), b"1.2.840.10008/1.2.1"), "Transfer Syntax UID is not a UID"),
        (META + META[132:], "(0002,0000) is there twice"),
        (META[:-1], "(0002,0016) goes beyond"),
        (META + b"\x02\x00\x02\x01OB\0\0\xff\xff\xff\xff", "(0002,0102) goes beyond"),
    ],
)
def test_the_refusal_names_what_is_missing_or_broken(data: bytes, message: str) -> None:
    with pytest.raises(HeaderError) as caught:
        read_meta(data)
    assert message in str(caught.value)


def test_no_more_than_the_limit_is_looked_at() -> None:
    private = b"\x02\x00\x02\x01OB\0\0" + (MAX_META_BYTES).to_bytes(4, "little") + bytes(MAX_META_BYTES)
    with pytest.raises(HeaderError, match=f"goes beyond {MAX_META_BYTES} bytes"):
        read_meta(META + private)


def test_a_preamble_of_another_file_format_is_passed_over() -> None:
    polyglot = b"MZ\x90\x00".ljust(128, b"x") + META[128:]
    assert read_meta(polyglot) == read_meta(META)


def test_cut_at_any_length_it_is_refused_or_whole_elements_are_read() -> None:
    whole = read_meta(META)
    for cut in range(len(META)):
        try:
            meta = read_meta(META[:cut])
        except HeaderError:
            continue
        assert meta.transfer_syntax_uid == EXPLICIT
        assert meta.dataset_offset <= cut
        assert meta != whole


@given(st.binary(max_size=300), st.booleans())
def test_random_bytes_raise_nothing_but_a_header_error(data: bytes, with_prefix: bool) -> None:
    try:
        meta = read_meta(META[:132] + data if with_prefix else data)
    except HeaderError as error:
        assert str(error).isprintable()
    else:
        assert meta.transfer_syntax_uid.isprintable()


@given(st.lists(st.tuples(st.integers(132, len(META) - 1), st.integers(0, 255)), max_size=5))
def test_mutated_bytes_raise_nothing_but_a_header_error(changes: list[tuple[int, int]]) -> None:
    data = bytearray(META)
    for position, value in changes:
        data[position] = value
    try:
        meta = read_meta(bytes(data))
    except HeaderError:
        return
    assert 132 < meta.dataset_offset <= len(data)


def test_an_instance_file_gives_its_data_set_piece_by_piece(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(META + bytes(range(256)) * 10)
    found = open_instance(path)
    assert found == InstanceFile(path, read_meta(META), 2560)
    assert [len(piece) for piece in found.chunks(1000)] == [1000, 1000, 560]
    assert b"".join(found.chunks(1000)) == bytes(range(256)) * 10


@needs_material
def test_the_data_set_of_real_files_begins_where_pydicom_finds_it() -> None:
    paths = sorted((MATERIAL / "dicom" / "transfer_syntaxes").glob("*.dcm"))
    assert len(paths) > 30
    for path in paths:
        found = open_instance(path)
        ds = pydicom.dcmread(path, stop_before_pixels=True)
        assert found.meta.transfer_syntax_uid == ds.file_meta.TransferSyntaxUID
        assert found.meta.media_storage_sop_class_uid == ds.file_meta.MediaStorageSOPClassUID
        raw = path.read_bytes()
        stream = BytesIO(raw)
        stream.seek(132)
        pydicom.filereader._read_file_meta_info(stream)
        assert found.meta.dataset_offset == stream.tell()
        assert found.dataset_bytes == len(raw) - stream.tell()


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_instance(tmp_path / "none.dcm")
