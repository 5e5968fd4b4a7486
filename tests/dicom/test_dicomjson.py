"""The DICOM JSON model, held against pydicom's; and files that must not be believed."""

import json
import zlib
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicom.dicomjson import MAX_HEAD_BYTES, Attributes, metadata, texts
from dicom.errors import InstanceError
from dicom.header import InstanceHeader, scan_file
from tests.tiny import tiny_study

VRS = {
    0x00080020: "DA",
    0x00080060: "CS",
    0x00081030: "LO",
    0x00100010: "PN",
    0x00100020: "LO",
    0x0020000D: "UI",
    0x00200013: "IS",
    0x00280010: "US",
    0x00180050: "DS",
}


def saved(directory: Path, **attributes: Any) -> Path:  # noqa: ANN401 - as `tiny_study`
    return tiny_study(directory, slices=1, **attributes)[0]


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, None])
def test_chosen_attributes_are_what_pydicom_says_in_every_encoding(
    tmp_path: Path, syntax: UID | None
) -> None:
    path = saved(
        tmp_path, SpecificCharacterSet="ISO_IR 192", StudyDescription="Head", PatientName="Doe^Jane=\u5c71^x"
    )
    ds = dcmread(path)
    if syntax is not None:
        ds.file_meta.TransferSyntaxUID = syntax
    ds.save_as(path)
    found = Attributes(VRS).read(path)
    assert found == {tag: value for tag, value in dcmread(path).to_json_dict().items() if int(tag, 16) in VRS}
    assert found["00100010"]["Value"] == [{"Alphabetic": "Doe^Jane", "Ideographic": "\u5c71^x"}]
    assert texts(found["00100010"]) == ("Doe^Jane",)
    assert texts(None) == ()


def test_chosen_attributes_of_a_big_endian_file_are_what_pydicom_says() -> None:
    path = Path(str(get_testdata_file("MR_small_bigendian.dcm")))
    found = Attributes(VRS).read(path)
    assert found["00280010"] == {"vr": "US", "Value": [64]}
    assert found == {tag: value for tag, value in dcmread(path).to_json_dict().items() if int(tag, 16) in VRS}


def test_values_that_are_none_are_left_out(tmp_path: Path) -> None:
    path = saved(tmp_path)
    data = path.read_bytes().replace(b"IS\x02\x001 ", b"IS\x02\x00x ")
    path.write_bytes(data)
    found = Attributes(VRS).read(path)
    assert all(value not in ("x", "x ") for each in found.values() for value in each.get("Value", []))
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, None])
def test_metadata_is_the_whole_instance_but_its_pixels(tmp_path: Path, syntax: UID | None) -> None:
    path = saved(tmp_path, ImageComments="last text before the pixels")
    ds = dcmread(path)
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "1", "99X", "one"
    ds.ProcedureCodeSequence = Items([item])
    ds.add_new(0x00091001, "OB", bytes(5000))
    if syntax is not None:
        ds.file_meta.TransferSyntaxUID = syntax
    ds.save_as(path)
    found = metadata(path, scan_file(path)[0])
    expected = json.loads(json.dumps(dcmread(path).to_json_dict(bulk_data_threshold=10**9)))
    for tag in ("7FE00010", "00091001"):
        assert tag not in found
        expected.pop(tag)
    assert found == expected


def test_a_head_that_is_too_large_or_a_bomb_is_refused_without_being_read(tmp_path: Path) -> None:
    path = saved(tmp_path)
    ds = dcmread(path)
    ds.add_new(0x00091001, "OB", bytes(MAX_HEAD_BYTES + 2))
    ds.save_as(path)
    with pytest.raises(InstanceError, match="before Pixel Data"):
        metadata(path, scan_file(path)[0])
    ds = dcmread(saved(tmp_path, name="bomb"))
    header = scan_file(tmp_path / "bomb-1-000.dcm")[0]
    file = BytesIO()
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    ds.save_as(file)
    data = file.getvalue()
    at = data.index(b"DICM") + 4
    at += 12 + int.from_bytes(data[at + 8 : at + 12], "little")
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = squeeze.compress(bytes(MAX_HEAD_BYTES * 4)) + squeeze.flush()
    (tmp_path / "bomb.dcm").write_bytes(data[:at] + bomb)
    with pytest.raises(InstanceError, match="inflates to more"):
        metadata(tmp_path / "bomb.dcm", _without_pixels(header))


def _without_pixels(header: InstanceHeader) -> InstanceHeader:
    return replace(header, pixel_data_offset=None, pixel_data_length=None)


def test_nesting_beyond_reason_is_an_error_of_the_instance(tmp_path: Path) -> None:
    path = saved(tmp_path)
    nested = b""
    for _ in range(5000):
        inner = b"\xfe\xff\x00\xe0" + len(nested).to_bytes(4, "little") + nested
        nested = b"\x40\x00\x75\x02SQ\x00\x00" + len(inner).to_bytes(4, "little") + inner
    data = path.read_bytes()
    at = data.index(b"\xe0\x7f\x10\x00")
    path.write_bytes(data[:at] + nested + data[at:])
    with pytest.raises(InstanceError, match="cannot be given as JSON"):
        metadata(path, scan_file(path)[0])


def test_pydicoms_own_files_give_metadata_or_an_error_of_theirs() -> None:
    for name in ("CT_small.dcm", "MR_small.dcm", "rtplan.dcm", "test-SR.dcm", "JPEG2000.dcm"):
        path = Path(str(get_testdata_file(name)))
        found = metadata(path, scan_file(path)[0])
        assert found["0020000D"]["Value"] == [dcmread(path, stop_before_pixels=True).StudyInstanceUID]
