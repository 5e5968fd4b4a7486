"""The header scan: equal to pydicom on real files, and bounded on hostile ones."""
# ruff: noqa: ANN401 (the values of a pydicom Dataset are Any)

import hashlib
import struct
import tracemalloc
import warnings
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.charset import encode_string
from pydicom.dataset import Dataset
from pydicom.filewriter import write_dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence

from dicom import walk
from dicom.charset import decode_text
from dicom.errors import HeaderError
from dicom.header import HEAD_BYTES, InstanceHeader, scan, scan_file
from dicom.part10 import file_meta
from tests.material import MATERIAL, needs_material, unpack

EXPLICIT = "1.2.840.10008.1.2.1"
IMPLICIT = "1.2.840.10008.1.2"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
UNCOMPRESSED = (EXPLICIT, IMPLICIT, BIG_ENDIAN)
PYDICOM_FILES = Path(pydicom.__file__).parent / "data" / "test_files"


# --- against pydicom ---


def texts(value: Any) -> tuple[str, ...]:
    if not value:
        return ()
    parts = value if isinstance(value, MultiValue | list) else [value]
    return tuple(str(part).strip(" \0") for part in parts)


def text(value: Any) -> str:
    return "\\".join(texts(value))


def number(kind: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def parse(value: Any) -> Any:
        if isinstance(value, MultiValue):
            value = value[0] if value else None
        return None if value is None or value == "" else kind(value)

    return parse


def numbers(value: Any) -> tuple[float, ...] | None:
    return tuple(float(part) for part in value) if value else None


FIELDS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "sop_class_uid": ("SOPClassUID", text),
    "sop_instance_uid": ("SOPInstanceUID", text),
    "study_instance_uid": ("StudyInstanceUID", text),
    "series_instance_uid": ("SeriesInstanceUID", text),
    "modality": ("Modality", text),
    "body_part_examined": ("BodyPartExamined", text),
    "view_position": ("ViewPosition", text),
    "image_type": ("ImageType", texts),
    "patient_orientation": ("PatientOrientation", texts),
    "series_description": ("SeriesDescription", text),
    "protocol_name": ("ProtocolName", text),
    "scanning_sequence": ("ScanningSequence", texts),
    "modality_lut": ("ModalityLUTSequence", lambda value: int(value is not None)),
    "contrast_agent": ("ContrastBolusAgent", text),
    "series_number": ("SeriesNumber", number(int)),
    "instance_number": ("InstanceNumber", number(int)),
    "acquisition_number": ("AcquisitionNumber", number(int)),
    "temporal_position": ("TemporalPositionIdentifier", number(int)),
    "echo_time_ms": ("EchoTime", number(float)),
    "images_in_acquisition": ("ImagesInAcquisition", number(int)),
    "number_of_study_related_instances": ("NumberOfStudyRelatedInstances", number(int)),
    "frame_of_reference_uid": ("FrameOfReferenceUID", text),
    "image_position_mm": ("ImagePositionPatient", numbers),
    "image_orientation": ("ImageOrientationPatient", numbers),
    "pixel_spacing_mm": ("PixelSpacing", numbers),
    "slice_thickness_mm": ("SliceThickness", number(float)),
    "spacing_between_slices_mm": ("SpacingBetweenSlices", number(float)),
    "gantry_tilt_deg": ("GantryDetectorTilt", number(float)),
    "rows": ("Rows", number(int)),
    "columns": ("Columns", number(int)),
    "photometric_interpretation": ("PhotometricInterpretation", text),
    "bits_allocated": ("BitsAllocated", number(int)),
    "bits_stored": ("BitsStored", number(int)),
    "high_bit": ("HighBit", number(int)),
    "rescale_slope": ("RescaleSlope", number(float)),
    "rescale_intercept": ("RescaleIntercept", number(float)),
    "window_center": ("WindowCenter", number(float)),
    "window_width": ("WindowWidth", number(float)),
}
WITH_DEFAULT = {
    "number_of_frames": ("NumberOfFrames", 1),
    "samples_per_pixel": ("SamplesPerPixel", 1),
    "pixel_representation": ("PixelRepresentation", 0),
    "planar_configuration": ("PlanarConfiguration", 0),
}
ELSEWHERE = {"transfer_syntax_uid", "laterality", "patient_key", "pixel_data_offset", "pixel_data_length"}


def patient_key(patient_id: bytes, issuer: bytes = b"") -> str:
    return hashlib.sha256(patient_id + b"\0" + issuer).hexdigest()[:16]


def assert_as_pydicom_reads_it(path: Path) -> None:
    header, dataset_offset = scan_file(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = pydicom.dcmread(path)
        for name, (keyword, parse) in FIELDS.items():
            assert getattr(header, name) == parse(ds.get(keyword)), f"{path.name}: {name}"
        for name, (keyword, default) in WITH_DEFAULT.items():
            assert getattr(header, name) == int(ds.get(keyword) or default), f"{path.name}: {name}"
        laterality = text(ds.get("ImageLaterality")) or text(ds.get("Laterality"))
        patient_id, issuer = text(ds.get("PatientID")).encode(), text(ds.get("IssuerOfPatientID")).encode()
    assert header.laterality == laterality
    assert header.patient_key == (patient_key(patient_id, issuer) if patient_id else "")
    assert header.transfer_syntax_uid == ds.file_meta.TransferSyntaxUID
    if "PixelData" not in ds or header.transfer_syntax_uid in walk.DEFLATED:
        assert header.pixel_data_offset is None
    else:
        raw = path.read_bytes()
        begin = dataset_offset + (header.pixel_data_offset or 0)
        if header.pixel_data_length is None:
            assert raw[begin : begin + 4] == b"\xfe\xff\x00\xe0"  # the Basic Offset Table's item
            assert ds["PixelData"].is_undefined_length
        else:
            assert raw[begin : begin + header.pixel_data_length] == ds.PixelData


def test_every_field_of_the_header_is_compared_with_pydicom() -> None:
    assert set(InstanceHeader.__slots__) == set(FIELDS) | set(WITH_DEFAULT) | ELSEWHERE


WITHOUT_STUDY = {  # of the material: what their makers left out
    "HTJ2KLossless_08_RGB.dcm": "study_instance_uid is missing",
    "JLSL_16_15_1_1F.dcm": "study_instance_uid is missing",
    "JPEGLSNearLossless_08.dcm": "study_instance_uid is missing",
}


@needs_material
@pytest.mark.parametrize(
    "path",
    [
        path
        for folder in ("transfer_syntaxes", "nonimage", "cxr")
        for path in sorted((MATERIAL / "dicom" / folder).glob("*"))
    ],
    ids=lambda path: path.name[-60:],
)
def test_the_material_is_read_as_pydicom_reads_it(path: Path) -> None:
    if path.name in WITHOUT_STUDY:
        with pytest.raises(HeaderError, match=WITHOUT_STUDY[path.name]):
            scan_file(path)
    else:
        assert_as_pydicom_reads_it(path)


@needs_material
def test_a_real_mr_series_is_read_as_pydicom_reads_it(tmp_path: Path) -> None:
    paths = unpack("mr_t1_mni152", tmp_path)
    assert len(paths) == 189
    for path in paths[::20]:
        assert_as_pydicom_reads_it(path)


@needs_material
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("DICOMDIR-nooffset", "(0008,0016) sop_class_uid is missing"),
        ("ExplVR_LitEndNoMeta.dcm", "no prefix DICM at byte 128"),
        ("OT-PAL-8-face.dcm", "no prefix DICM at byte 128"),
        ("badVR.dcm", "(0028,0008) number_of_frames is not a number"),
        ("empty_charset_LEI.dcm", "(0008,0016) sop_class_uid is missing"),
        ("meta_missing_tsyntax.dcm", "(0002,0010) Transfer Syntax UID is missing"),
        ("no_meta.dcm", "no prefix DICM at byte 128"),
        ("rtplan_truncated.dcm", "the element at byte 1118 goes beyond the end, at byte 1829"),
        ("zipMR.gz", "compressed with gzip"),
    ],
)
def test_odd_files_are_refused_with_what_is_wrong(name: str, message: str) -> None:
    with pytest.raises(HeaderError) as caught:
        scan_file(MATERIAL / "dicom" / "odd" / name)
    assert message in str(caught.value)


@needs_material
def test_a_sequence_delimiter_inside_pixel_data_does_not_matter() -> None:
    assert_as_pydicom_reads_it(MATERIAL / "dicom" / "odd" / "JPEG2000-embedded-sequence-delimiter.dcm")


def test_pydicoms_own_test_files_are_read_as_pydicom_reads_them_or_lack_a_uid() -> None:
    read = 0
    for path in sorted(path for path in PYDICOM_FILES.rglob("*") if path.is_file()):
        try:
            scan_file(path)
        except HeaderError as error:
            if "is missing" in str(error) or "prefix DICM" in str(error) or "gzip" in str(error):
                continue
            assert path.name in {"badVR.dcm", "rtplan_truncated.dcm", "nested_priv_SQ.dcm"}, error
            continue
        assert_as_pydicom_reads_it(path)
        read += 1
    assert read >= 60


# --- data sets of our own ---


def dataset(**attributes: Any) -> Dataset:
    ds = Dataset()
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    ds.SOPInstanceUID = "1.2.3.4"
    ds.StudyInstanceUID = "1.2.3"
    ds.SeriesInstanceUID = "1.2.3.5"
    ds.Modality = "CT"
    for name, value in attributes.items():
        setattr(ds, name, value)
    return ds


def encode(ds: Dataset, transfer_syntax_uid: str = EXPLICIT) -> bytes:
    buffer = pydicom.filebase.DicomBytesIO()
    buffer.is_implicit_VR = transfer_syntax_uid == IMPLICIT
    buffer.is_little_endian = transfer_syntax_uid != BIG_ENDIAN
    write_dataset(buffer, ds)
    raw: bytes = buffer.getvalue()
    if transfer_syntax_uid == DEFLATED:
        deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        raw = deflater.compress(raw) + deflater.flush()
    return raw


def element(tag: int, vr: bytes, value: bytes) -> bytes:
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr)
    if vr in (b"SQ", b"UN", b"OB", b"OW"):
        return head + b"\0\0" + struct.pack("<I", len(value)) + value
    return head + struct.pack("<H", len(value)) + value


def undefined(tag: int, vr: bytes, items: bytes) -> bytes:
    head = struct.pack("<HH2sHI", tag >> 16, tag & 0xFFFF, vr, 0, 0xFFFFFFFF)
    return head + items + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


def item(content: bytes, *, defined: bool = False) -> bytes:
    if defined:
        return struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content
    head = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    return head + content + struct.pack("<HHI", 0xFFFE, 0xE00D, 0)


UIDS = encode(dataset())
BEFORE = UIDS[: UIDS.index(b"\x20\x00\x0d\x00")]  # up to (0020,000D): what follows is of group 0020
AFTER = UIDS[len(BEFORE) :]


@pytest.mark.parametrize("transfer_syntax_uid", [*UNCOMPRESSED, DEFLATED])
@pytest.mark.parametrize("view", [bytes, memoryview])
def test_all_encodings_give_the_same_header(
    transfer_syntax_uid: str, view: Callable[[bytes], bytes | memoryview]
) -> None:
    ds = dataset(
        ImageType=["ORIGINAL", "PRIMARY"],
        ImagePositionPatient=[1, -2.5, 3e2],
        Rows=512,
        Columns=256,
        BitsAllocated=16,
        PixelRepresentation=1,
        WindowCenter=[40, 400],
        ReferencedImageSequence=Sequence([dataset(), dataset()]),
    )
    ds["ReferencedImageSequence"].is_undefined_length = True
    ds.add_new(0x7FE00010, "OW", b"\1\2" * 100)
    header = scan(view(encode(ds, transfer_syntax_uid)), transfer_syntax_uid)
    assert header.sop_instance_uid == "1.2.3.4"
    assert header.image_type == ("ORIGINAL", "PRIMARY")
    assert header.image_position_mm == (1.0, -2.5, 300.0)
    assert (header.rows, header.columns, header.bits_allocated) == (512, 256, 16)
    assert header.pixel_representation == 1
    assert header.window_center == 40.0
    assert header.pixel_data_length == (None if transfer_syntax_uid == DEFLATED else 200)


@pytest.mark.parametrize(
    ("uid", "accepted"),
    [
        (b"1.2.3\0", True),
        (b"1.2.3 ", True),
        (b"1.2.3\0\0\0", True),
        (b"1.2.0.3 ", True),
        (b"../../etc/passwd", False),
        (b"1.2/3 ", False),
        (b"1.2\\3 ", False),
        (b"1.2.03", False),
        (b"1..2", False),
        (b".1.2", False),
        (b"1.2.", False),
        (b" 1.2.3", False),
        (b"1.2\n3 ", False),
        (b"1.2.3\n", False),
        (b"1" * 65 + b" ", False),
        ("1.2.٣".encode(), False),
        (b"", False),
        (b"\0\0", False),
        (b"1." * 600, False),
    ],
)
@pytest.mark.parametrize("tag", [0x00080016, 0x00080018, 0x0020000D, 0x0020000E])
def test_the_four_uids_must_be_uids(tag: int, uid: bytes, accepted: bool) -> None:
    values = dict.fromkeys([0x00080016, 0x00080018, 0x0020000D, 0x0020000E], b"1.2.4\0")
    data = b"".join(element(each, b"UI", uid if each == tag else value) for each, value in values.items())
    if accepted:
        header = scan(data, EXPLICIT)
        assert uid.rstrip(b"\0 ").decode() in {
            header.sop_class_uid,
            header.sop_instance_uid,
            header.study_instance_uid,
            header.series_instance_uid,
        }
        return
    with pytest.raises(HeaderError) as caught:
        scan(data, EXPLICIT)
    assert f"({tag >> 16:04X},{tag & 0xFFFF:04X})" in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("tag", "vr", "raw", "name", "expected"),
    [
        (0x00200013, b"IS", b"12", "instance_number", 12),
        (0x00200013, b"IS", b" +7 ", "instance_number", 7),
        (0x00200013, b"IS", b"1.0 ", "instance_number", 1),
        (0x00200013, b"IS", b"1.5 ", "instance_number", None),
        (0x00200013, b"IS", b"1A", "instance_number", None),
        (0x00200013, b"IS", b"1\\2 ", "instance_number", None),
        (0x00200013, b"IS", b"1_0 ", "instance_number", None),
        (0x00200013, b"IS", b"99999999999 ", "instance_number", None),
        (0x00200013, b"IS", b"9" * 400, "instance_number", None),
        (0x00180050, b"DS", b"nan ", "slice_thickness_mm", None),
        (0x00180050, b"DS", b"-inf", "slice_thickness_mm", None),
        (0x00180050, b"DS", b"1e999 ", "slice_thickness_mm", None),
        (0x00180050, b"DS", b" 2.5e-1 ", "slice_thickness_mm", 0.25),
        (0x00180050, b"DS", b"1" * 2000, "slice_thickness_mm", None),
        (0x00200032, b"DS", b"1\\2\\3 ", "image_position_mm", (1.0, 2.0, 3.0)),
        (0x00200032, b"DS", b"1\\2 ", "image_position_mm", None),
        (0x00200032, b"DS", b"1\\2\\3\\4 ", "image_position_mm", None),
        (0x00200032, b"DS", b"1\\x\\3\\4 ", "image_position_mm", None),
        (0x00200032, b"DS", b"", "image_position_mm", None),
        (0x00200052, b"UI", b"a/b ", "frame_of_reference_uid", ""),
        (0x00280010, b"US", b"\0\2", "rows", 512),
        (0x00280010, b"US", b"\0\2\0\2", "rows", None),
        (0x00280010, b"XX", b"\0\2", "rows", 512),
        (0x00280008, b"IS", b"", "number_of_frames", 1),
        (0x00280008, b"IS", b"0 ", "number_of_frames", 1),
        (0x00280008, b"IS", b"17", "number_of_frames", 17),
        (0x00280004, b"CS", b"MONOCHROME2 ", "photometric_interpretation", "MONOCHROME2"),
        (0x00280004, b"CS", b"\xff\xfe", "photometric_interpretation", ""),
        (0x00280004, b"CS", b"A\x1b[31mB", "photometric_interpretation", ""),
    ],
)
def test_a_value_that_is_not_what_its_vr_says_is_as_if_absent(
    tag: int, vr: bytes, raw: bytes, name: str, expected: object
) -> None:
    extra = element(tag, vr, raw)
    data = BEFORE + extra + AFTER if tag < 0x00200000 else UIDS + extra
    header = scan(data, EXPLICIT)
    assert getattr(header, name) == expected
    assert header.sop_instance_uid == "1.2.3.4"


@pytest.mark.parametrize(
    ("tag", "vr", "raw"),
    [
        (0x00280002, b"US", b"\1\0\0\0"),
        (0x00280006, b"US", b"\1\0\0\0"),
        (0x00280103, b"US", b"\1\0\0\0"),
        (0x00280008, b"IS", b"1A"),
        (0x00280008, b"IS", b"-3"),
    ],
)
def test_what_says_how_pixels_lie_is_never_guessed(tag: int, vr: bytes, raw: bytes) -> None:
    with pytest.raises(HeaderError, match=r"\(0028,"):
        scan(UIDS + element(tag, vr, raw), EXPLICIT)


@pytest.mark.parametrize("tag", [0x00281052, 0x00281053])
@pytest.mark.parametrize(
    "raw", [b"-800,0", b"NaN ", b"inf ", b"1e999 ", b"1\\1 ", b"- 8 ", b"1_0 ", b"\xff\xfe"]
)
def test_what_values_mean_is_never_guessed(tag: int, raw: bytes) -> None:
    with pytest.raises(HeaderError) as caught:
        scan(UIDS + element(tag, b"DS", raw), EXPLICIT)
    assert f"(0028,{tag & 0xFFFF:04X})" in str(caught.value)
    assert "is not one decimal number" in str(caught.value)
    assert "800" not in str(caught.value)


def test_a_rescale_that_is_absent_or_empty_is_none() -> None:
    for raw in (b"", b"  ", b"\0\0"):
        header = scan(UIDS + element(0x00281052, b"DS", raw) + element(0x00281053, b"DS", raw), EXPLICIT)
        assert (header.rescale_intercept, header.rescale_slope) == (None, None)
    header = scan(
        UIDS + element(0x00281052, b"DS", b"-1.024e+03") + element(0x00281053, b"DS", b"0 "), EXPLICIT
    )
    assert (header.rescale_intercept, header.rescale_slope) == (-1024.0, 0.0)


def test_a_patient_has_a_key_that_is_not_the_identifier() -> None:
    def key(**attributes: str) -> str:
        return scan(encode(dataset(**attributes)), EXPLICIT).patient_key

    assert key(PatientID="DOE-1") == key(PatientID=" DOE-1 ") == patient_key(b"DOE-1")
    assert key(PatientID="DOE-1", IssuerOfPatientID="WARD") == patient_key(b"DOE-1", b"WARD")
    assert len({key(PatientID="1"), key(PatientID="2"), key(PatientID="1", IssuerOfPatientID="2")}) == 3
    assert key() == key(PatientID="") == key(PatientID="  ") == key(IssuerOfPatientID="WARD") == ""
    assert "DOE" not in repr(scan(encode(dataset(PatientID="DOE-1", PatientName="DOE")), EXPLICIT))


def test_an_attribute_that_is_there_twice_is_refused() -> None:
    twice = UIDS + element(0x0020000D, b"UI", b"9.9.9\0")
    with pytest.raises(HeaderError, match=r"\(0020,000D\) is there twice"):
        scan(twice, EXPLICIT)


@pytest.mark.parametrize("transfer_syntax_uid", UNCOMPRESSED)
def test_a_data_set_cannot_smuggle_in_meta_information(transfer_syntax_uid: str) -> None:
    order = ">" if transfer_syntax_uid == BIG_ENDIAN else "<"
    meta = struct.pack(f"{order}HH2sH", 2, 0x10, b"UI", 18) + b"1.2.840.10008.1.2\0"
    with pytest.raises(HeaderError, match="begins with a group below 0004"):
        scan(meta + encode(dataset(), transfer_syntax_uid), transfer_syntax_uid)


def test_the_uids_of_a_nested_data_set_are_not_taken_for_the_outer_ones() -> None:
    other = element(0x00080018, b"UI", b"9.9\0") + element(0x0020000D, b"UI", b"9.9\0")
    for hidden in (
        undefined(0x00081140, b"SQ", item(other)),
        undefined(0x00081140, b"SQ", item(other, defined=True)),
        element(0x00081140, b"SQ", item(other, defined=True)),
    ):
        header = scan(BEFORE + hidden + AFTER, EXPLICIT)
        assert (header.sop_instance_uid, header.study_instance_uid) == ("1.2.3.4", "1.2.3")
        assert header.modality == "CT"


def test_un_of_undefined_length_holds_implicit_vr() -> None:
    inner = struct.pack("<HHI", 0x0009, 0x1001, 0x4243) + bytes(0x4243)  # a length that looks like a VR
    nested = (
        struct.pack("<HHI", 0x0009, 0x1002, 0xFFFFFFFF) + item(inner) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    )
    data = BEFORE + undefined(0x00091010, b"UN", item(nested)) + AFTER
    assert scan(data, EXPLICIT).study_instance_uid == "1.2.3"


def test_fragments_of_an_icon_are_stepped_over() -> None:
    fragments = item(b"", defined=True) + item(b"\xff\xd8" * 40, defined=True)
    icon = undefined(0x00880200, b"SQ", item(undefined(0x7FE00010, b"OB", fragments)))
    data = UIDS + icon + undefined(0x7FE00010, b"OB", fragments)
    header = scan(data, "1.2.840.10008.1.2.4.50")
    assert header.pixel_data_offset == len(UIDS) + len(icon) + 12
    assert header.pixel_data_length is None


def nested(depth: int) -> bytes:
    content = element(0x00091001, b"LO", b"deep")
    for _ in range(depth):
        content = undefined(0x00091010, b"SQ", item(content))
    return content


def test_sequences_may_be_32_deep_and_no_deeper() -> None:
    assert walk.MAX_DEPTH == 32
    assert scan(BEFORE + nested(32) + AFTER, EXPLICIT).study_instance_uid == "1.2.3"
    with pytest.raises(HeaderError, match="more than 32 deep"):
        scan(BEFORE + nested(33) + AFTER, EXPLICIT)


def test_a_sequence_20000_deep_costs_no_recursion() -> None:
    one = struct.pack("<HH2sHI", 0x0009, 0x1010, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    with pytest.raises(HeaderError, match="more than 32 deep"):
        scan(BEFORE + one * 20_000, EXPLICIT)


@pytest.mark.parametrize(
    "broken",
    [
        struct.pack("<HHI", 0xFFFE, 0xE00D, 0),  # a delimiter without its sequence
        struct.pack("<HHI", 0xFFFE, 0xE0DD, 0),
        struct.pack("<HHI", 0xFFFE, 0xE000, 8) + bytes(8),
        undefined(0x00081140, b"SQ", element(0x00091001, b"LO", b"no item")),
        undefined(0x00081140, b"SQ", struct.pack("<HHI", 0xFFFE, 0xE00D, 0)),
        undefined(0x00081140, b"SQ", item(struct.pack("<HHI", 0xFFFE, 0xE0DD, 0))),
        undefined(0x00081140, b"SQ", b"")[:-8],
        struct.pack("<HH2sHI", 0x0009, 0x1001, b"OB", 0, 0xFFFFFFFE),
        b"\x09\x00\x01",
    ],
)
def test_a_broken_structure_is_refused(broken: bytes) -> None:
    with pytest.raises(HeaderError, match="data set: "):
        scan(BEFORE + broken, EXPLICIT)


def test_the_number_of_elements_is_bounded() -> None:
    one = struct.pack("<HHI", 0x0009, 0x1001, 0)
    flat = one * (walk.MAX_ELEMENTS + 1)
    sequence = struct.pack("<HHI", 0x0009, 0x1010, 0xFFFFFFFF)
    in_sequence = sequence + struct.pack("<HHI", 0xFFFE, 0xE000, 0) * (walk.MAX_ELEMENTS + 1)
    empty = sequence + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    for data in (flat, in_sequence, empty * (walk.MAX_ELEMENTS + 1)):
        with pytest.raises(HeaderError, match="more than 1000000 elements"):
            scan(data, IMPLICIT)


def peak_bytes(action: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_deflate_bomb_stops_at_the_limit_and_costs_little_memory() -> None:
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    head = element(0x00091001, b"OB", b"")[:-4] + struct.pack("<I", 0x3FFFFFF0)
    bomb = deflater.compress(BEFORE + head)
    for _ in range(40):
        bomb += deflater.compress(bytes(1024 * 1024))
    bomb += deflater.flush()
    assert len(bomb) < 64_000  # 40 MiB when inflated

    def refused() -> None:
        with pytest.raises(HeaderError, match="no Pixel Data in the first 16777216 inflated bytes"):
            scan(bomb, DEFLATED)

    assert peak_bytes(refused) < 4 * walk.MAX_INFLATED_BYTES


def test_deflated_pixels_are_not_inflated() -> None:
    ds = dataset()
    ds.add_new(0x7FE00010, "OW", bytes(8 * 1024 * 1024))
    data = encode(ds, DEFLATED)
    found: list[InstanceHeader] = []
    assert peak_bytes(lambda: found.append(scan(data, DEFLATED))) < 1024 * 1024
    assert found[0].study_instance_uid == "1.2.3"


def test_damaged_or_cut_deflated_bytes_are_refused() -> None:
    data = encode(dataset(SeriesDescription="x"), DEFLATED)
    for cut in range(len(data)):
        with pytest.raises(HeaderError):
            scan(data[:cut], DEFLATED)
    with pytest.raises(HeaderError, match="cannot be inflated"):
        scan(b"\xff" * 100, DEFLATED)


@pytest.mark.parametrize("transfer_syntax_uid", UNCOMPRESSED)
def test_cut_anywhere_before_pixel_data_it_is_refused_or_lacks_only_what_was_cut(
    transfer_syntax_uid: str,
) -> None:
    ds = dataset(Rows=4, Columns=5, ReferencedImageSequence=Sequence([dataset()]))
    ds["ReferencedImageSequence"].is_undefined_length = True
    ds.add_new(0x7FE00010, "OW", bytes(40))
    data = encode(ds, transfer_syntax_uid)
    whole = scan(data, transfer_syntax_uid)
    begin = whole.pixel_data_offset
    assert begin is not None
    for cut in range(len(data)):
        try:
            header = scan(data[:cut], transfer_syntax_uid)
        except HeaderError:
            assert cut < begin
            continue
        assert cut >= begin or header.pixel_data_offset is None
        if cut >= begin:
            assert header == whole


@given(st.binary(max_size=400), st.sampled_from([*UNCOMPRESSED, DEFLATED, "1.2.840.10008.1.2.4.90"]))
def test_random_bytes_raise_nothing_but_a_header_error(data: bytes, transfer_syntax_uid: str) -> None:
    with pytest.raises(HeaderError) as caught:
        scan(data, transfer_syntax_uid)
    assert str(caught.value).isprintable()


def rich(transfer_syntax_uid: str) -> bytes:
    ds = dataset(
        SpecificCharacterSet="ISO_IR 192",
        SeriesDescription="Schädel",
        ImageType=["ORIGINAL", "PRIMARY", "AXIAL"],
        InstanceNumber=3,
        ImagePositionPatient=[1, 2, 3],
        ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
        PixelSpacing=[0.5, 0.5],
        NumberOfFrames=1,
        Rows=4,
        Columns=4,
        ReferencedImageSequence=Sequence([dataset(), dataset(ReferencedImageSequence=Sequence([dataset()]))]),
    )
    ds["ReferencedImageSequence"].is_undefined_length = True
    ds.add_new(0x7FE00010, "OW", bytes(32))
    return encode(ds, transfer_syntax_uid)


RICH = {uid: rich(uid) for uid in (*UNCOMPRESSED, DEFLATED)}


@settings(max_examples=400)
@given(
    st.sampled_from([*UNCOMPRESSED, DEFLATED]),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=6),
    st.integers(0, 2000),
    st.binary(max_size=20),
)
def test_mutated_bytes_raise_nothing_but_a_header_error(
    transfer_syntax_uid: str, changes: list[tuple[int, int]], cut: int, tail: bytes
) -> None:
    data = bytearray(RICH[transfer_syntax_uid])
    for position, value in changes:
        data[position % len(data)] = value
    hostile = bytes(data[: cut % len(data) + 1]) + tail
    try:
        header = scan(hostile, transfer_syntax_uid)
    except HeaderError as error:
        assert str(error).isprintable()
    else:
        assert header.study_instance_uid
        assert header.number_of_frames >= 1


# --- text ---


@pytest.mark.parametrize(
    ("charset", "expected"),
    [
        ("ISO_IR 100", "Schädel mit Kontrast ø"),
        ("ISO_IR 192", "頭部 Schädel 머리"),
        ("GB18030", "头部增强"),
        ("ISO_IR 144", "голова"),
        ("ISO_IR 126", "κεφάλι"),
        ("ISO_IR 127", "رأس"),
        ("ISO_IR 138", "ראש"),
        ("ISO_IR 166", "ศีรษะ"),
        ("ISO_IR 13", "ｱﾀﾏ"),
        ("\\ISO 2022 IR 87", "頭部 CT"),
        ("\\ISO 2022 IR 159", "丂丄"),
        ("\\ISO 2022 IR 149", "머리 CT"),
        ("ISO 2022 IR 100\\ISO 2022 IR 144", "Schädel голова"),
    ],
)
def test_text_in_every_character_set_is_what_pydicom_wrote(charset: str, expected: str) -> None:
    encodings = pydicom.charset.convert_encodings(charset.split("\\"))
    raw = encode_string(expected, encodings)
    assert not raw.isascii() or b"\x1b" in raw
    assert decode_text(raw, charset.encode()) == expected


def test_simplified_chinese_is_read_as_the_standard_writes_it() -> None:
    # PS3.5 Annex K.2; pydicom writes it without its escape sequence
    raw = b"Zhang \x1b$)A" + "头部".encode("gb2312")
    assert decode_text(raw, b"\\ISO 2022 IR 58") == "Zhang 头部"


@given(st.binary(max_size=60), st.binary(max_size=30))
def test_any_text_in_any_character_set_comes_out_printable(raw: bytes, charset: bytes) -> None:
    assert decode_text(raw, charset).isprintable()


def test_text_that_cannot_be_read_does_not_refuse_the_image() -> None:
    ds = BEFORE[: BEFORE.index(b"\x08\x00\x60\x00")]
    modality = element(0x00080060, b"CS", b"CT")
    described = element(0x0008103E, b"LO", b"\xff\x1b$Z\0\x07 ")
    header = scan(ds + modality + described + AFTER, EXPLICIT)
    assert header.series_description.isprintable()
    assert header.series_description


# --- files ---


def stored(path: Path, data: bytes, transfer_syntax_uid: str = EXPLICIT) -> Path:
    meta = file_meta("1.2.840.10008.5.1.4.1.1.2", "1.2.3.4", transfer_syntax_uid, "TESTS")
    path.write_bytes(meta + data)
    return path


@pytest.fixture
def pixels() -> Iterator[bytes]:
    yield struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, 8) + bytes(8)


@pytest.mark.parametrize("size", [0, HEAD_BYTES - 4000, HEAD_BYTES - 300, HEAD_BYTES, 5 * HEAD_BYTES])
def test_what_lies_beyond_the_first_read_is_found_too(tmp_path: Path, pixels: bytes, size: int) -> None:
    private = element(0x00091001, b"OB", bytes(size))
    path = stored(tmp_path / "a.dcm", BEFORE + private + AFTER + element(0x00280010, b"US", b"\0\2") + pixels)
    header, dataset_offset = scan_file(path)
    assert (header.study_instance_uid, header.rows) == ("1.2.3", 512)
    assert header.pixel_data_offset == len(BEFORE + private + AFTER) + 10 + 12
    assert path.read_bytes()[dataset_offset:].startswith(BEFORE)


def test_an_object_without_pixels_longer_than_the_first_read_is_read_to_its_end(tmp_path: Path) -> None:
    waveform = element(0x54000100, b"SQ", bytes(3 * HEAD_BYTES))
    header, _ = scan_file(stored(tmp_path / "a.dcm", UIDS + waveform))
    assert header.pixel_data_offset is None
    with pytest.raises(HeaderError, match="goes beyond the end"):
        scan_file(stored(tmp_path / "b.dcm", (UIDS + waveform)[:-1]))


def test_a_large_file_is_not_read_into_memory(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.dcm", UIDS + struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, 2**31))
    with path.open("r+b") as file:
        file.truncate(2**31 + path.stat().st_size)
    assert peak_bytes(lambda: scan_file(path)) < 1024 * 1024


def test_scan_file_of_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(HeaderError, match="file: empty"):
        scan_file(tmp_path / "empty")


def test_a_file_with_meta_information_only_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HeaderError, match="sop_class_uid is missing"):
        scan_file(stored(tmp_path / "a.dcm", b""))


def test_pydicom_reads_what_the_tests_wrote() -> None:
    ds = pydicom.dcmread(BytesIO(RICH[EXPLICIT]), force=True)
    assert ds.SeriesDescription == "Schädel"
