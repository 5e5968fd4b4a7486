"""What every result has in common: patient, study, series, equipment, names.

Owns the modules that a Segmentation, a report and a picture share (PS3.3 §C.7.1.1, §C.7.2,
§C.7.3.1, §C.7.5, §C.12.1) and the derived UIDs; not what is particular to one of them.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone, tzinfo
from itertools import groupby
from typing import Final

from dicom.element import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    Encoder,
    data_set,
    date_of,
    file_format,
    in_character_set,
    time_of,
)
from dicom.header import InstanceHeader
from dicom.provenance import NOT_FOR_DIAGNOSIS_MARK, contributing_equipment, equipment
from dicom.results import ResultContext, ResultObject
from dicom.source import SourceSeries
from dicom.statements import description
from dicom.uid import derive

Body = Callable[[Encoder], list[bytes]]

_LOSSY_SYNTAXES: Final = frozenset(
    f"1.2.840.10008.1.2.4.{number}" for number in ("50", "51", "53", "55", "81", "91", "93", "203")
)
"""Lossy transfer syntaxes; .91, .93 and .203 may be lossless too, and do not say: better said than not."""

_LO: Final = 64  # characters (PS3.5 §6.2)


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of result object."""

    name: str
    sop_class_uid: str
    modality: str
    series_numbers: range
    """Far above a scanner's. Each item takes one of 10,000, chosen by its identity: two series or models
    of one study share one only by a chance of 1 in 10,000, and nothing breaks when they do."""
    noun: str


KINDS: Final[Mapping[str, Kind]] = {
    kind.name: kind
    for kind in (
        Kind("SEG", "1.2.840.10008.5.1.4.1.1.66.4", "SEG", range(900_001, 1_000_000, 10), "Segmentation"),
        Kind("SR", "1.2.840.10008.5.1.4.1.1.88.34", "SR", range(900_002, 1_000_000, 10), "Report"),
        Kind("SC", "1.2.840.10008.5.1.4.1.1.7", "OT", range(900_003, 1_000_000, 10), "Picture"),
    )
}


@dataclass(frozen=True, slots=True)
class Names:
    """The UIDs of one result object."""

    series_instance_uid: str
    sop_instance_uid: str


def names_of(context: ResultContext, kind: Kind) -> Names:
    """A new series and a new instance, both a function of the context's identity and the kind alone."""
    return Names(
        derive(*context.identity, kind.name, "series"), derive(*context.identity, kind.name, "instance")
    )


def encode_object(
    source: SourceSeries, context: ResultContext, kind: Kind, body: Body, tail: Iterable[bytes] = ()
) -> ResultObject:
    """The whole file of one result.

    Args:
        source: the series that the model saw.
        context: what else the result depends on.
        kind: which object it is.
        body: makes the elements that are particular to the kind, given an encoder.
        tail: elements already encoded whose tags come after all others, in order (large ones).

    Raises:
        ValueError: the context is of another study than the source, or has no input.
    """
    _check(source, context)
    names = names_of(context, kind)
    tail = tuple(tail)

    def build(encode: Encoder) -> bytes:
        return data_set(*_common(encode, source, context, kind, names), *body(encode))

    data = in_character_set(source.encoder(), build)
    return ResultObject(
        kind=kind.name,
        sop_class_uid=kind.sop_class_uid,
        sop_instance_uid=names.sop_instance_uid,
        series_instance_uid=names.series_instance_uid,
        transfer_syntax_uid=EXPLICIT_VR_LITTLE_ENDIAN,
        data=file_format(kind.sop_class_uid, names.sop_instance_uid, (data, *tail)),
    )


def references(encode: Encoder, headers: Iterable[InstanceHeader]) -> list[bytes]:
    """The content of one SOP Instance Reference item for each instance (PS3.3 Table 10-11)."""
    return [
        data_set(
            encode("ReferencedSOPClassUID", header.sop_class_uid),
            encode("ReferencedSOPInstanceUID", header.sop_instance_uid),
        )
        for header in headers
    ]


def by_series(headers: Iterable[InstanceHeader]) -> list[tuple[str, list[InstanceHeader]]]:
    """The instances of each series, series and instances in their order of appearance."""
    return [
        (uid, list(group)) for uid, group in groupby(headers, key=lambda header: header.series_instance_uid)
    ]


def local_time(source: SourceSeries, created: datetime, zone: tzinfo | None = None) -> datetime:
    """`created` in the source's time zone where the source names one, else in that of the box.

    A time without zone is local time (PS3.3 §C.12.1.1.8), as the images' are: a result in UTC would
    sort before its images in a hospital east of Greenwich.

    Args:
        source: may have (0008,0201).
        created: aware.
        zone: of the box; None asks the system (TZ).
    """
    text = source.values.get("TimezoneOffsetFromUTC", "")
    if not text:
        return created.astimezone(zone)
    offset = timedelta(hours=int(text[1:3]), minutes=int(text[3:5]))
    return created.astimezone(timezone(-offset if text[0] == "-" else offset))


def in_its_letters(encode: Encoder, text: str) -> str:
    """The text with a question mark for each character that the object's character set lacks.

    For free text of a series: it must not change in which characters the patient's name is written.
    """
    try:
        for start in range(0, len(text), _LO):  # the encoder looks at what fits
            encode("SeriesDescription", text[start : start + _LO])
    except UnicodeEncodeError:
        return text.encode("ascii", "replace").decode("ascii")
    return text


def lossy_compression(
    encode: Encoder, source: SourceSeries, headers: Iterable[InstanceHeader]
) -> list[bytes]:
    """(0028,2110) ff.: once lossy, always lossy (PS3.3 §C.7.6.1.1.5)."""
    said = source.values.get("LossyImageCompression") == "01"
    if not said and not any(header.transfer_syntax_uid in _LOSSY_SYNTAXES for header in headers):
        return [encode("LossyImageCompression", "00")]
    detail = source.copy_if_present(encode, "LossyImageCompressionRatio", "LossyImageCompressionMethod")
    return [encode("LossyImageCompression", "01"), *detail]


def _check(source: SourceSeries, context: ResultContext) -> None:
    if not context.inputs:
        raise ValueError("a result needs at least one input instance")
    if context.created.tzinfo is None:
        raise ValueError("created: a time without zone")
    for header in (*source.headers, *context.inputs):
        if header.study_instance_uid != context.study_instance_uid:
            raise ValueError(
                f"SOP Instance {header.sop_instance_uid}: study {header.study_instance_uid}, "
                f"the result is for {context.study_instance_uid}"
            )


def _common(
    encode: Encoder, source: SourceSeries, context: ResultContext, kind: Kind, names: Names
) -> list[bytes]:
    created = local_time(source, context.created)
    elements = [
        *_patient_and_study(encode, source, context),
        encode("SOPClassUID", kind.sop_class_uid),
        encode("SOPInstanceUID", names.sop_instance_uid),
        encode("InstanceCreationDate", date_of(created)),
        encode("InstanceCreationTime", time_of(created)),
        encode("Modality", kind.modality),
        encode("SeriesInstanceUID", names.series_instance_uid),
        encode("SeriesNumber", _series_number(context, kind)),
        encode("SeriesDescription", in_its_letters(encode, _series_description(context, kind))),
        encode("SeriesDate", date_of(created)),
        encode("SeriesTime", time_of(created)),
        encode("InstanceNumber", 1),
        encode("ContentDate", date_of(created)),
        encode("ContentTime", time_of(created)),
        contributing_equipment(encode, context),
        *equipment(encode, context.equipment),
        *source.copy_if_present(encode, "TimezoneOffsetFromUTC"),
    ]
    if encode.character_set:
        elements.append(encode("SpecificCharacterSet", *encode.character_set.split("\\")))
    return elements


def _patient_and_study(encode: Encoder, source: SourceSeries, context: ResultContext) -> list[bytes]:
    type_2 = (
        "PatientName", "PatientID", "PatientBirthDate", "PatientSex",
        "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyID",
    )  # fmt: skip
    type_3 = ("IssuerOfPatientID", "PatientAge", "PatientSize", "PatientWeight", "StudyDescription")
    elements = [source.copy(encode, keyword) for keyword in type_2]
    elements += source.copy_if_present(encode, *type_3, "PatientIdentityRemoved")
    if source.values.get("PatientIdentityRemoved") == "YES":
        method = source.copy_if_present(encode, "DeidentificationMethod")
        elements += method or [encode("DeidentificationMethod", "as in the source images")]
    if source.procedures:
        elements.append(encode("ProcedureCodeSequence", *map(encode.code, source.procedures)))
    elements.append(encode("StudyInstanceUID", context.study_instance_uid))
    return elements


def _series_number(context: ResultContext, kind: Kind) -> int:
    """One of the kind's numbers, the same for all that has this identity."""
    slot = int(derive(*context.identity, "series number").rpartition(".")[2])
    return kind.series_numbers[slot % len(kind.series_numbers)]


def _series_description(context: ResultContext, kind: Kind) -> str:
    """Kind, title, version, source series and remark in LO's 64 characters; version and remark are whole."""
    algorithm, header = context.algorithm, context.inputs[0]
    remark = f" - {NOT_FOR_DIAGNOSIS_MARK}"
    number = "" if header.series_number is None else str(header.series_number)
    source = f"of {number} {description(header)}".replace("  ", " ").rstrip()
    source = "" if source == "of" else source
    parts = [kind.noun, algorithm.name, algorithm.version, source]
    whole = " ".join(part for part in parts if part) + remark
    if len(whole) <= _LO:
        return whole
    room = _LO - len(remark) - len(f"{kind.name}  {algorithm.version} ")
    title = _shortened(algorithm.name, max(room - len(source), (room + 1) // 2))
    source = _shortened(source, room - len(title))
    parts = [kind.name, title, algorithm.version, source]
    return " ".join(part for part in parts if part)[: _LO - len(remark)] + remark


def _shortened(text: str, width: int) -> str:
    if len(text) <= width:
        return text
    return f"{text[: width - 2].rstrip()}.." if width > 4 else ""
