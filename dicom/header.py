"""The attributes of one instance that the appliance needs before any pixel is decoded.

Owns the reading of these attributes from an encoded data set; it builds no `Dataset`,
decodes no pixel, and reads only the top level: what an enhanced multi-frame object says
in its functional groups stays None. Implements PS3.5 §6.2 (the value representations of
these attributes) and §9.1 (UIDs); the walk over the elements is `dicom.walk`.

Security: as `dicom.walk`. A value that is not what its VR says is as if absent,
unless a wrong guess could pass for a right one: then the instance is refused.
"""

import hashlib
import mmap
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dicom.charset import decode_text
from dicom.errors import HeaderError
from dicom.part10 import MAX_META_BYTES, read_meta
from dicom.uid import is_valid
from dicom.walk import NO_OTHER_LIMITS, Elements, WalkLimits, Wanted, find, show

HEAD_BYTES: Final = 64 * 1024
"""What is read of a file at first; the attributes of nearly every image lie within it."""
PATIENT_KEY_DIGITS: Final = 16
"""64 bits: two of the patients of one series do not meet by chance."""


@dataclass(frozen=True, slots=True)
class InstanceHeader:
    """The facts of one instance; an absent attribute is None (or empty, for text and tuples)."""

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    transfer_syntax_uid: str
    modality: str = ""
    body_part_examined: str = ""
    view_position: str = ""
    laterality: str = ""
    image_type: tuple[str, ...] = ()
    series_description: str = ""
    protocol_name: str = ""
    scanning_sequence: tuple[str, ...] = ()
    contrast_agent: str = ""
    patient_key: str = ""
    """A pseudonym of Patient ID (0010,0020) and Issuer of Patient ID (0010,0021): equal for one patient.
    Empty where there is no Patient ID. It keeps the identifier out of journals and logs; who knows the
    identifiers of a hospital can compute it."""
    patient_orientation: tuple[str, ...] = ()
    """(0020,0020): to where the rows and the columns of a plain image run, as (L, F)."""
    series_number: int | None = None
    instance_number: int | None = None
    acquisition_number: int | None = None
    temporal_position: int | None = None
    echo_time_ms: float | None = None
    images_in_acquisition: int | None = None
    number_of_study_related_instances: int | None = None
    frame_of_reference_uid: str = ""
    image_position_mm: tuple[float, float, float] | None = None
    image_orientation: tuple[float, float, float, float, float, float] | None = None
    pixel_spacing_mm: tuple[float, float] | None = None
    slice_thickness_mm: float | None = None
    spacing_between_slices_mm: float | None = None
    gantry_tilt_deg: float | None = None
    rows: int | None = None
    columns: int | None = None
    number_of_frames: int = 1
    samples_per_pixel: int = 1
    photometric_interpretation: str = ""
    bits_allocated: int | None = None
    bits_stored: int | None = None
    high_bit: int | None = None
    pixel_representation: int = 0
    planar_configuration: int = 0
    modality_lut: int = 0
    """1 when the values go through a Modality LUT Sequence (0028,3000) instead of slope and intercept."""
    rescale_slope: float | None = None
    rescale_intercept: float | None = None
    window_center: float | None = None
    window_width: float | None = None
    pixel_data_offset: int | None = None
    """Where the value of (7FE0,0010) begins, from the start of the data set; None if deflated or absent."""
    pixel_data_length: int | None = None
    """Its length in bytes; None for an encapsulated (undefined length) value."""


def scan(
    data: bytes | memoryview, transfer_syntax_uid: str, limits: WalkLimits = NO_OTHER_LIMITS
) -> InstanceHeader:
    """The header of an encoded data set (without preamble and File Meta Information).

    Args:
        data: the data set, or its beginning up to anywhere within the value of Pixel Data.
        transfer_syntax_uid: how it is encoded; see `dicom.walk.find`.
        limits: on elements and depth.

    Raises:
        HeaderError: the SOP Class, SOP Instance, Study or Series Instance UID is missing or
            invalid; a number that says how the pixels lie, or what their values mean, is no
            number; the encoding is broken before Pixel Data.
    """
    elements = find(data, transfer_syntax_uid, _WANTED, limits)
    fields: dict[str, Any] = {"transfer_syntax_uid": transfer_syntax_uid}
    for tag, raw in elements.values.items():
        name, parse = _ATTRIBUTES[tag]
        if parse is not None:
            fields[name] = parse(raw)
        elif tag in _TEXTS:
            fields[name] = decode_text(raw, elements.values.get(_CHARSET, b""))
        elif len(raw) == 2:
            fields[name] = int.from_bytes(raw, elements.byte_order)
    fields.pop("charset", None)
    _check(fields, elements)
    return InstanceHeader(
        pixel_data_offset=elements.pixel_data_offset,
        pixel_data_length=elements.pixel_data_length,
        **fields,
    )


def scan_file(path: Path) -> tuple[InstanceHeader, int]:
    """The header of a file (PS3.10 §7.1), and where its data set begins.

    Raises:
        HeaderError: as `scan`, or the preamble, the prefix or the meta information is missing.
        OSError: the file cannot be read.
    """
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        meta = read_meta(os.pread(handle, MAX_META_BYTES, 0))
        return scan_descriptor(handle, meta.dataset_offset, meta.transfer_syntax_uid), meta.dataset_offset
    finally:
        os.close(handle)


def scan_descriptor(
    handle: int, dataset_offset: int, transfer_syntax_uid: str, limits: WalkLimits = NO_OTHER_LIMITS
) -> InstanceHeader:
    """As `scan`, of an open file whose data set begins at `dataset_offset`; its position is not used.

    Only the beginning is read, unless Pixel Data does not begin there; then the file is mapped.
    """
    head = os.pread(handle, HEAD_BYTES, dataset_offset)
    is_whole = len(head) < HEAD_BYTES
    try:
        header = scan(head, transfer_syntax_uid, limits)
    except HeaderError:
        if is_whole:
            raise
    else:
        if is_whole or header.pixel_data_offset is not None:
            return header
    with (
        mmap.mmap(handle, 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as view,
        view[dataset_offset:] as data,
    ):
        return scan(data, transfer_syntax_uid, limits)


def _check(fields: dict[str, Any], elements: Elements) -> None:
    """Refuse what cannot be named or laid out, and settle what has a default."""
    for tag, name in _UIDS.items():
        if not fields.get(name):
            state = "is not a UID" if elements.values.get(tag, b"").strip(b"\0 ") else "is missing"
            raise HeaderError(f"data set: {show(tag)} {name} {state} (PS3.5 §9.1)")
    for tag, (name, default) in _CERTAIN.items():
        value = fields.get(name)
        if value is None:
            if elements.values.get(tag, b"").strip(b"\0 "):
                raise HeaderError(f"data set: {show(tag)} {name} is not a number")
            fields[name] = default
    for tag, name in _MEANINGS.items():
        if fields.get(name) is None and elements.values.get(tag, b"").strip(b"\0 "):
            raise HeaderError(f"data set: {show(tag)} {name} is not one decimal number (PS3.5 §6.2)")
    if fields["number_of_frames"] == 0:
        fields["number_of_frames"] = 1  # Off-spec: some writers mean "one"; pydicom reads it so
    if fields["number_of_frames"] < 0:
        raise HeaderError("data set: (0028,0008) number_of_frames is below 1")
    patient_id, issuer = fields.pop("patient_id", b""), fields.pop("issuer_of_patient_id", b"")
    if patient_id:
        digest = hashlib.sha256(patient_id + b"\0" + issuer).hexdigest()
        fields["patient_key"] = digest[:PATIENT_KEY_DIGITS]
    image_laterality = fields.pop("image_laterality", "")
    if image_laterality:
        fields["laterality"] = image_laterality


def _uid(raw: bytes) -> str:
    uid = raw.rstrip(b"\0 ").decode("ascii", "replace")
    return uid if is_valid(uid) else ""


def _bytes(raw: bytes) -> bytes:
    return raw.strip(b" \0")


def _code(raw: bytes) -> str:
    try:
        text = raw.strip(b" \0").decode("ascii")
    except UnicodeDecodeError:
        return ""
    return text if text.isprintable() else ""


def _codes(raw: bytes) -> tuple[str, ...]:
    text = _code(raw)
    return tuple([part.strip(" ") for part in text.split("\\")]) if text else ()


def _decimal(raw: bytes) -> float | None:
    try:
        value = float(raw.strip(b" \0"))
    except ValueError:
        return None
    # float() also reads "nan", "inf" and "1_0", which are no decimal strings (PS3.5 Table 6.2-1)
    return value if value - value == 0 and b"_" not in raw else None


def _first_decimal(raw: bytes) -> float | None:
    return _decimal(raw.split(b"\\", 1)[0])


def _decimals(raw: bytes, count: int) -> tuple[float, ...] | None:
    try:
        values = tuple([float(part) for part in raw.strip(b" \0").split(b"\\")])
    except ValueError:
        return None
    total = sum(values)
    return values if len(values) == count and total - total == 0 and b"_" not in raw else None


def _integer(raw: bytes) -> int | None:
    value = _decimal(raw)  # Off-spec: "1.0" is read as 1, as pydicom reads it
    if value is None or not -(2**31) <= value < 2**31 or not value.is_integer():
        return None
    return int(value)


def _two(raw: bytes) -> tuple[float, ...] | None:
    return _decimals(raw, 2)


def _three(raw: bytes) -> tuple[float, ...] | None:
    return _decimals(raw, 3)


def _six(raw: bytes) -> tuple[float, ...] | None:
    return _decimals(raw, 6)


_CHARSET: Final = 0x00080005
_UIDS: Final[Mapping[int, str]] = {
    0x00080016: "sop_class_uid",
    0x00080018: "sop_instance_uid",
    0x0020000D: "study_instance_uid",
    0x0020000E: "series_instance_uid",
}
_CERTAIN: Final[Mapping[int, tuple[str, int]]] = {  # never None: what absence means
    0x00280002: ("samples_per_pixel", 1),
    0x00280006: ("planar_configuration", 0),
    0x00280008: ("number_of_frames", 1),
    0x00280103: ("pixel_representation", 0),
}
_MEANINGS: Final[Mapping[int, str]] = {  # absent they mean 0 and 1; a wrong guess passes for Hounsfield units
    0x00281052: "rescale_intercept",
    0x00281053: "rescale_slope",
}
_TEXTS: Final[dict[int, str]] = {  # VR LO, in the data set's character set
    0x0008103E: "series_description",
    0x00180010: "contrast_agent",
    0x00181030: "protocol_name",
}
_NUMBERS: Final[dict[int, str]] = {  # VR US
    0x00280002: "samples_per_pixel",
    0x00280006: "planar_configuration",
    0x00280010: "rows",
    0x00280011: "columns",
    0x00280100: "bits_allocated",
    0x00280101: "bits_stored",
    0x00280102: "high_bit",
    0x00280103: "pixel_representation",
}
_ATTRIBUTES: Final[Mapping[int, tuple[str, Callable[[bytes], object] | None]]] = {
    **{tag: (name, None) for tag, name in (_TEXTS | _NUMBERS).items()},
    **{tag: (name, _uid) for tag, name in _UIDS.items()},
    _CHARSET: ("charset", _code),
    0x00080008: ("image_type", _codes),
    0x00080060: ("modality", _code),
    0x00100020: ("patient_id", _bytes),
    0x00100021: ("issuer_of_patient_id", _bytes),
    0x00180015: ("body_part_examined", _code),
    0x00180020: ("scanning_sequence", _codes),
    0x00180050: ("slice_thickness_mm", _decimal),
    0x00180081: ("echo_time_ms", _decimal),
    0x00180088: ("spacing_between_slices_mm", _decimal),
    0x00181120: ("gantry_tilt_deg", _decimal),
    0x00185101: ("view_position", _code),
    0x00200011: ("series_number", _integer),
    0x00200012: ("acquisition_number", _integer),
    0x00200013: ("instance_number", _integer),
    0x00200020: ("patient_orientation", _codes),
    0x00200032: ("image_position_mm", _three),
    0x00200037: ("image_orientation", _six),
    0x00200052: ("frame_of_reference_uid", _uid),
    0x00200060: ("laterality", _code),
    0x00200062: ("image_laterality", _code),
    0x00200100: ("temporal_position", _integer),
    0x00201002: ("images_in_acquisition", _integer),
    0x00201208: ("number_of_study_related_instances", _integer),
    0x00280004: ("photometric_interpretation", _code),
    0x00280008: ("number_of_frames", _integer),
    0x00280030: ("pixel_spacing_mm", _two),
    0x00281050: ("window_center", _first_decimal),
    0x00281051: ("window_width", _first_decimal),
    0x00281052: ("rescale_intercept", _decimal),
    0x00281053: ("rescale_slope", _decimal),
    0x00283000: ("modality_lut", lambda _: 1),
}
_WANTED: Final = Wanted(_ATTRIBUTES)
