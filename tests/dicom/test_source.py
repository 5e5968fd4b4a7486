from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from dicom.errors import HeaderError
from dicom.report import encode_report
from dicom.results import Code, Findings, ResultObject
from dicom.segmentation import encode_segmentation
from dicom.source import SourceSeries, read_source
from dicom.validity import RULES
from tests.dicom.results_fixture import (
    BRAIN,
    CREATED,
    brain_findings,
    chest_x_ray,
    context_of,
    grid,
    series_of,
    source_file,
    written,
)
from tests.judges import dciodvfy, dsrdump, needs_dciodvfy, needs_dsrdump
from tests.material import needs_material

SHAPE = (2, 20, 20)
PAIRS = grid(SHAPE)
TYPE_2 = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
    "AccessionNumber", "ReferringPhysicianName", "StudyID",
)  # fmt: skip
JAPANESE = "Yamada^Tarou=山田^太郎=やまだ^たろう"
JAPANESE_RAW = b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B"


def source_with(folder: Path, **values: bytes) -> SourceSeries:
    return read_source(source_file(folder, PAIRS, **values))


def report_of(source: SourceSeries, *warnings: str) -> ResultObject:
    return encode_report(source, Findings(BRAIN, None, warnings=warnings), context_of(PAIRS), None)


def report_with(folder: Path, *warnings: str, **values: bytes) -> Dataset:
    return dcmread(BytesIO(report_of(source_with(folder, **values), *warnings).data))


@needs_material
@pytest.mark.parametrize("name", ["mr_t1_mni152", "mr_t1_studyforrest", "ct_head_phantom_tilt"])
def test_patient_and_study_are_repeated_as_pydicom_reads_them(name: str) -> None:
    pairs = series_of(name, 2)
    original = dcmread(pairs[0][0], stop_before_pixels=True)
    result = encode_report(read_source(pairs), Findings(BRAIN, None), context_of(pairs), None)
    ds = dcmread(BytesIO(result.data))
    for keyword in (*TYPE_2, "StudyDescription", "StudyInstanceUID"):
        assert ds.get(keyword) == original.get(keyword), keyword
    assert ds.SeriesInstanceUID != original.SeriesInstanceUID


@needs_material
def test_an_x_ray_gives_its_attributes_too() -> None:
    pair = chest_x_ray()
    original = dcmread(pair[0], stop_before_pixels=True)
    source = read_source([pair])
    assert source.values["PatientID"] == original.PatientID
    assert source.values["StudyDate"] == original.StudyDate


@needs_dciodvfy
@needs_dsrdump
@pytest.mark.parametrize(
    ("terms", "raw", "name"),
    [
        ("\\ISO 2022 IR 87", JAPANESE_RAW, JAPANESE),
        ("ISO_IR 100", "Müller^Jürgen".encode("latin-1"), "Müller^Jürgen"),
        ("ISO_IR 192", JAPANESE.encode(), JAPANESE),
        ("ISO_IR 144", "Иванов^Иван".encode("iso8859_5"), "Иванов^Иван"),
        ("GB18030", "王^小东".encode("gb18030"), "王^小东"),
        (
            "\\ISO 2022 IR 149",
            b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7",
            "Hong^Gildong=洪^吉洞",
        ),
        ("ISO_IR 13", b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3", "ﾔﾏﾀﾞ^ﾀﾛｳ"),
    ],
)
def test_a_name_in_any_character_set_is_kept_byte_for_byte(
    terms: str, raw: bytes, name: str, tmp_path: Path
) -> None:
    source = source_with(
        tmp_path, SpecificCharacterSet=terms.encode(), PatientName=raw, PatientID=b"7", StudyID=b"1"
    )
    result = report_of(source)
    ds = dcmread(BytesIO(result.data))
    assert raw in result.data
    expected = terms.split("\\")
    assert list(ds[0x00080005].value) == expected if len(expected) > 1 else ds.SpecificCharacterSet == terms
    assert str(ds.PatientName) == name
    if terms != "ISO_IR 13":  # dicom3tools does not know this set
        assert dciodvfy(written(tmp_path, "sr.dcm", result.data)).errors == ()


@pytest.mark.parametrize(
    ("terms", "raw", "name"),
    [
        ("\\ISO 2022 IR 87", JAPANESE_RAW, JAPANESE),
        ("ISO_IR 13", b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3", "ﾔﾏﾀﾞ^ﾀﾛｳ"),
        ("", b"Plain^Name", "Plain^Name"),
    ],
)
def test_a_text_of_ours_outside_the_sources_set_makes_the_whole_result_utf_8(
    terms: str, raw: bytes, name: str, tmp_path: Path
) -> None:
    ds = report_with(tmp_path, "schön", SpecificCharacterSet=terms.encode(), PatientName=raw)
    assert ds.SpecificCharacterSet == "ISO_IR 192"
    assert str(ds.PatientName) == name
    comments = [
        item.TextValue
        for item in ds.ContentSequence[-1].ContentSequence[0].ContentSequence
        if "TextValue" in item
    ]
    assert "Warning: schön" in comments


def test_a_text_of_ours_inside_the_sources_set_leaves_it(tmp_path: Path) -> None:
    name = "Müller".encode("latin-1")
    ds = report_with(tmp_path, "schön", SpecificCharacterSet=b"ISO_IR 100", PatientName=name)
    assert ds.SpecificCharacterSet == "ISO_IR 100"
    assert str(ds.PatientName) == "Müller"
    comments = [
        item.TextValue
        for item in ds.ContentSequence[-1].ContentSequence[0].ContentSequence
        if "TextValue" in item
    ]
    assert "Warning: schön" in comments


@needs_dciodvfy
@pytest.mark.parametrize(
    ("terms", "raw", "name"),
    [
        (b"", "Müller".encode(), "Müller"),  # UTF-8, not said
        (b"", "Müller".encode("latin-1"), "Müller"),  # Latin-1, not said
        (b"ISO_IR 999", "Müller".encode("latin-1"), "Müller"),
        (b"ISO_IR 192", "Müller".encode("latin-1"), "Müller"),
        (b"\xff\xfe nonsense", "Müller".encode(), "Müller"),
        (b"ISO_IR 6", b"Mueller", "Mueller"),
    ],
)
def test_a_name_whose_character_set_is_wrong_or_not_said_is_still_readable(
    terms: bytes, raw: bytes, name: str, tmp_path: Path
) -> None:
    source = source_with(tmp_path, SpecificCharacterSet=terms, PatientName=raw, PatientID=b"7")
    result = report_of(source)
    assert str(dcmread(BytesIO(result.data)).PatientName) == name
    assert dciodvfy(written(tmp_path, "sr.dcm", result.data)).errors == ()


@needs_dciodvfy
@needs_dsrdump
def test_a_source_without_any_attribute_gives_empty_ones(tmp_path: Path) -> None:
    source = source_with(tmp_path)
    report = report_of(source)
    ds = dcmread(BytesIO(report.data))
    for keyword in TYPE_2:
        assert keyword in ds
        assert not ds[keyword].value
    assert "IssuerOfPatientID" not in ds
    segmentation = encode_segmentation(source, brain_findings(np.ones(SHAPE, np.uint8)), context_of(PAIRS))
    assert segmentation is not None
    for result in (report, segmentation):
        assert dciodvfy(written(tmp_path, "result.dcm", result.data)).errors == ()
    dsrdump(written(tmp_path, "sr.dcm", report.data))


@needs_dciodvfy
def test_hostile_values_are_left_out_and_the_sound_ones_beside_them_kept(tmp_path: Path) -> None:
    source = source_with(
        tmp_path,
        StudyDate=b"20209999",
        StudyTime=b"half past",
        PatientBirthDate=b"1966.01.31",
        PatientSex=b"X",
        PatientAge=b"42",
        PatientWeight=b"heavy",
        PatientSize=b"1.75",
        PatientName=b"A\\B\x07C^" + b"D" * 200,
        PatientID=b"sound",
        StudyDescription=b"E" * 300,
        BodyPartExamined=b"head!",
        AccessionNumber=b"\0\0",
    )
    result = report_of(source)
    ds = dcmread(BytesIO(result.data))
    assert (ds.StudyDate, ds.StudyTime, ds.PatientBirthDate, ds.PatientSex) == ("", "", "19660131", "")
    assert "PatientAge" not in ds
    assert "PatientWeight" not in ds
    assert ds.PatientSize == 1.75
    assert str(ds.PatientName) == "A/B C^" + "D" * 58
    assert ds.PatientID == "sound"
    assert ds.StudyDescription == "E" * 64
    assert dciodvfy(written(tmp_path, "sr.dcm", result.data)).errors == ()


def test_what_an_archive_files_by_is_repeated_exactly_even_when_too_long(tmp_path: Path) -> None:
    source = source_with(tmp_path, PatientID=b"P" * 100, AccessionNumber=b"A" * 30, StudyID=b"S" * 20)
    data = report_of(source).data
    for value in (b"P" * 100, b"A" * 30, b"S" * 20):
        assert value in data


def test_a_value_that_is_absurdly_long_is_taken_for_absent(tmp_path: Path) -> None:
    assert not source_with(tmp_path, PatientID=b"P" * 5000).values["PatientID"]


@pytest.mark.parametrize("cut", [0, 100, 131, 140, 250, -1])
def test_a_file_that_is_cut_short_is_refused_with_nothing_of_the_patient_in_the_message(
    cut: int, tmp_path: Path
) -> None:
    ((path, header), *_) = source_file(tmp_path, PAIRS, PatientName=b"SECRET^NAME", PatientID=b"SECRET7")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(HeaderError) as caught:
        read_source([(path, header)])
    assert "SECRET" not in str(caught.value)


def test_no_file_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="no file"):
        read_source([])


def test_nothing_of_the_patient_is_in_the_representation(tmp_path: Path) -> None:
    source = source_with(tmp_path, PatientName=b"SECRET^NAME", PatientID=b"SECRET7")
    assert "SECRET" not in repr(source)
    assert "SECRET" not in str(source)


def code_sequence(value: bytes, scheme: bytes, meaning: bytes, *, undefined_item: bool = False) -> bytes:
    """The value of a code sequence of one item, explicit VR little endian."""
    parts = ((0x0100, b"SH", value), (0x0102, b"SH", scheme), (0x0104, b"LO", meaning))
    item = b""
    for number, vr, text in parts:
        padded = text + b" " * (len(text) % 2)
        item += b"\x08\x00" + number.to_bytes(2, "little") + vr + len(padded).to_bytes(2, "little") + padded
    if undefined_item:
        return b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + item + b"\xfe\xff\x0d\xe0\0\0\0\0"
    return b"\xfe\xff\x00\xe0" + len(item).to_bytes(4, "little") + item


@pytest.mark.parametrize("undefined_item", [False, True])
@pytest.mark.parametrize("keyword", ["ProcedureCodeSequence", "RequestedProcedureCodeSequence"])
def test_the_procedure_reported_is_the_sources(keyword: str, undefined_item: bool, tmp_path: Path) -> None:
    raw = code_sequence(b"MRBRAIN", b"99HOSP", b"MR of the brain", undefined_item=undefined_item)
    source = source_with(tmp_path, **{keyword: raw})
    assert source.procedures == (Code("MRBRAIN", "99HOSP", "MR of the brain"),)
    result = report_of(source)
    reported = [
        item.ConceptCodeSequence[0].CodeMeaning
        for item in dcmread(BytesIO(result.data)).ContentSequence
        if item.ConceptNameCodeSequence[0].CodeValue == "121058"
    ]
    assert reported == ["MR of the brain"]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xfe\xff\x00\xe0\xff\xff\xff\xff",
        b"\xfe\xff\x00\xe0\xff\x00\x00\x00abcdef",
        code_sequence(b"", b"99HOSP", b"no value"),
        code_sequence(b"A", b"S" * 40, b"scheme too long"),
        b"nonsense" * 8,
    ],
)
def test_a_procedure_that_cannot_be_read_gives_way_to_the_modality(raw: bytes, tmp_path: Path) -> None:
    source = source_with(tmp_path, ProcedureCodeSequence=raw)
    assert source.procedures == ()
    assert b"Magnetic resonance imaging" in report_of(source).data


@needs_material
def test_the_procedure_is_read_in_implicit_vr_as_pydicom_writes_it(tmp_path: Path) -> None:
    (path, header), *_ = series_of("mr_t1_studyforrest", 1)
    ds = dcmread(path, stop_before_pixels=True)
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "1", "99HOSP", "Kopf"
    ds.ProcedureCodeSequence = [item]
    changed = tmp_path / "changed.dcm"
    ds.save_as(changed)
    assert ds.file_meta.TransferSyntaxUID.is_implicit_VR
    assert read_source([(changed, header)]).procedures == (Code("1", "99HOSP", "Kopf"),)


def test_times_are_written_in_the_zone_that_the_source_names(tmp_path: Path) -> None:
    ds = report_with(tmp_path, TimezoneOffsetFromUTC=b"-0830")
    assert CREATED.strftime("%H%M") == "0506"
    assert (ds.ContentDate, ds.ContentTime[:4], ds.TimezoneOffsetFromUTC) == ("20260303", "2036", "-0830")
    plain = report_with(tmp_path)
    local = CREATED.astimezone()  # of the box
    assert (plain.ContentDate, plain.ContentTime[:4]) == (local.strftime("%Y%m%d"), local.strftime("%H%M"))
    assert "TimezoneOffsetFromUTC" not in plain


def test_a_time_without_zone_is_refused(tmp_path: Path) -> None:
    context = replace(context_of(PAIRS), created=CREATED.replace(tzinfo=None))
    with pytest.raises(ValueError, match="without zone"):
        encode_report(source_with(tmp_path), Findings(BRAIN, None), context, None)


def test_an_identity_that_was_removed_stays_removed(tmp_path: Path) -> None:
    ds = report_with(tmp_path, PatientIdentityRemoved=b"YES")
    assert (ds.PatientIdentityRemoved, ds.DeidentificationMethod) == ("YES", "as in the source images")


@pytest.mark.parametrize(
    ("keyword", "text", "expected"),
    [
        ("StudyDate", "20240229", "20240229"),
        ("StudyDate", "20230229", ""),
        ("StudyDate", "2024.02.29", "20240229"),
        ("StudyDate", "\uff12024\u0660229", ""),
        ("StudyTime", "142035.93", "142035.93"),
        ("StudyTime", "14:20:35", "142035"),
        ("StudyTime", "1420", "1420"),
        ("StudyTime", "235960", "235960"),
        ("StudyTime", "246000", ""),
        ("StudyTime", "142035.1234567", "142035.123456"),
        ("PatientSex", "F", "F"),
        ("PatientSex", "f", ""),
        ("PatientAge", "042Y", "042Y"),
        ("PatientAge", "42", ""),
        ("PatientWeight", "75.5", "75.5"),
        ("PatientWeight", "-1", ""),
        ("PatientWeight", "nan", ""),
        ("PatientWeight", "75.123456789012345678", "75.1234567890124"),
        ("LossyImageCompressionRatio", "10\\20.5", "10\\20.5"),
        ("LossyImageCompressionRatio", "10\\x", ""),
        ("BodyPartExamined", "head", "HEAD"),
        ("BodyPartExamined", "WAY TOO LONG A PART", ""),
        ("PatientOrientation", "L\\P", "L\\P"),
        ("TimezoneOffsetFromUTC", "+0530", "+0530"),
        ("TimezoneOffsetFromUTC", "+2500", ""),
        ("PatientIdentityRemoved", "MAYBE", ""),
        ("PatientName", "A^B^C^D^E^F^G=H=I=J", "A^B^C^D^E=H=I"),
        ("StudyDescription", "a\\b\x1fc", "a/b c"),
    ],
)
def test_what_may_be_repeated(keyword: str, text: str, expected: str) -> None:
    assert RULES[keyword](text) == expected
