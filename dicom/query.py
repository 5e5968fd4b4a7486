"""Query and retrieve as SCU: which studies an archive has (C-FIND), and sending one to us (C-MOVE).

Owns the identifiers of the Study Root Model (PS3.4 §C.6.2), the statuses (PS3.4 §C.4.1.1.4, §C.4.2.1.5) and
the bounds on what is asked for. Identifiers are small and built and read as bytes; no `Dataset`.

Security: what an archive answers is hostile: bounded in number and length, and UIDs must be UIDs. What is
asked for and answered names patients: neither is in a message or a log.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from dicom.charset import decode_text
from dicom.command import CommandField
from dicom.errors import HeaderError, PeerError
from dicom.requestor import IMPLICIT_VR_LITTLE_ENDIAN, PENDING, Association, Destination, Timeouts
from dicom.uid import is_valid
from dicom.walk import Wanted, find

STUDY_ROOT_FIND: Final = "1.2.840.10008.5.1.4.1.2.2.1"
STUDY_ROOT_MOVE: Final = "1.2.840.10008.5.1.4.1.2.2.2"
MAX_STUDIES: Final = 500
"""Studies of one answer; a patient has tens, and a query that finds more was too wide."""
MOVE_TIMEOUTS: Final = Timeouts(response_s=600.0)
"""An archive that says nothing between its responses may take so long to send a study."""

_CHARACTER_SET: Final = 0x00080005
_STUDY_DATE: Final = 0x00080020
_ACCESSION_NUMBER: Final = 0x00080050
_LEVEL: Final = 0x00080052
_MODALITIES: Final = 0x00080061
_DESCRIPTION: Final = 0x00081030
_PATIENT_ID: Final = 0x00100020
_ISSUER: Final = 0x00100021
_STUDY: Final = 0x0020000D
_INSTANCES: Final = 0x00201208
_ELEMENT: Final = struct.Struct("<HHI")
_RETURNED: Final = (_STUDY_DATE, _MODALITIES, _DESCRIPTION, _PATIENT_ID, _ISSUER, _STUDY, _INSTANCES)
_WANTED: Final = Wanted([_CHARACTER_SET, *_RETURNED])
_NULL_PADDED: Final = frozenset({_STUDY})


@dataclass(frozen=True, slots=True)
class StudyQuery:
    """What studies are looked for; an empty key matches anything, `*` and `?` are wildcards in text."""

    study_instance_uid: str = ""
    patient_id: str = ""
    issuer_of_patient_id: str = ""
    accession_number: str = ""
    modality: str = ""
    study_date: str = ""
    """DA, or a range of two: 20260101-20260331."""


@dataclass(frozen=True, slots=True)
class StudyFound:
    """One study that an archive has."""

    study_instance_uid: str
    study_date: str
    modalities: tuple[str, ...]
    instances: int | None
    patient_id: str
    issuer_of_patient_id: str
    description: str


@dataclass(frozen=True, slots=True)
class Moved:
    """What came of a C-MOVE, in instances."""

    completed: int
    failed: int
    warning: int


def find_studies(
    destination: Destination, calling_ae_title: str, query: StudyQuery, timeouts: Timeouts | None = None
) -> list[StudyFound]:
    """C-FIND at study level (PS3.4 §C.4.1).

    Raises:
        PeerError: the archive cannot be reached, refuses, fails, or finds more than `MAX_STUDIES`.
        ValueError: the query has no key, or one that cannot be sent.
    """
    identifier = _query_identifier(query)
    syntax = (STUDY_ROOT_FIND, IMPLICIT_VR_LITTLE_ENDIAN)
    association = _associate(destination, calling_ae_title, syntax, timeouts or Timeouts())
    found: list[StudyFound] = []
    for answer, data in association.inquire(syntax, CommandField.C_FIND_RQ, identifier):
        if answer.status in PENDING:
            if len(found) == MAX_STUDIES:
                association.abort()
                raise PeerError(
                    f"destination {destination}: finds more than {MAX_STUDIES} studies: ask for less"
                )
            found.append(_study(destination, association, data))
        elif answer.status != 0:
            association.abort()
            raise PeerError(
                f"destination {destination}: C-FIND was answered with status 0x{answer.status:04X}"
            )
    association.release()
    return found


def move_study(
    destination: Destination,
    calling_ae_title: str,
    study_instance_uid: str,
    move_destination: str,
    timeouts: Timeouts = MOVE_TIMEOUTS,
) -> Moved:
    """C-MOVE of a study (PS3.4 §C.4.2): `destination` sends it to what it knows as `move_destination`.

    Raises:
        PeerError: the archive cannot be reached, refuses, does not know `move_destination`, or fails.
        ValueError: the UID is none.
    """
    if not is_valid(study_instance_uid):
        raise ValueError("C-MOVE: the Study Instance UID is none (PS3.5 §9.1)")
    syntax = (STUDY_ROOT_MOVE, IMPLICIT_VR_LITTLE_ENDIAN)
    identifier = _identifier({_LEVEL: "STUDY", _STUDY: study_instance_uid})
    association = _associate(destination, calling_ae_title, syntax, timeouts)
    moved, status = Moved(0, 0, 0), 0
    for answer, _ in association.inquire(syntax, CommandField.C_MOVE_RQ, identifier, move_destination):
        status = answer.status or 0
        counts = (answer.completed_suboperations, answer.failed_suboperations, answer.warning_suboperations)
        moved = Moved(*(count or 0 for count in counts))
    association.release()
    if status == 0xA801:
        raise PeerError(
            f"destination {destination}: C-MOVE: it does not know the move destination {move_destination}"
        )
    if status not in {0x0000, 0xB000}:  # 0xB000: complete, one or more failures
        raise PeerError(f"destination {destination}: C-MOVE was answered with status 0x{status:04X}")
    return moved


def _associate(
    destination: Destination, calling_ae_title: str, syntax: tuple[str, str], timeouts: Timeouts
) -> Association:
    association = Association(destination, calling_ae_title, [syntax], timeouts)
    if syntax not in association.accepted:
        association.release()
        raise PeerError(f"destination {destination}: does not accept SOP class {syntax[0]}")
    return association


def _query_identifier(query: StudyQuery) -> bytes:
    keys = {
        _STUDY: query.study_instance_uid,
        _PATIENT_ID: query.patient_id,
        _ACCESSION_NUMBER: query.accession_number,
        _STUDY_DATE: query.study_date,
        _MODALITIES: query.modality,
        _ISSUER: query.issuer_of_patient_id,
    }
    if not any(keys.values()):
        raise ValueError("C-FIND: no key: every study of the archive would match")
    return _identifier({_LEVEL: "STUDY", **dict.fromkeys(_RETURNED, ""), **keys})


def _identifier(values: Mapping[int, str]) -> bytes:
    """An identifier in Implicit VR Little Endian, elements in the order of their tags."""
    encoded = b""
    is_ascii = all(value.isascii() for value in values.values())
    if not is_ascii:
        values = {**values, _CHARACTER_SET: "ISO_IR 192"}
    for tag, value in sorted(values.items()):
        if len(value) > 64 or not (value.isprintable() or not value):
            raise ValueError("identifier: a key is longer than 64 characters, or not printable")
        raw = value.encode()
        raw += (b"\0" if tag in _NULL_PADDED else b" ") * (len(raw) % 2)
        encoded += _ELEMENT.pack(tag >> 16, tag & 0xFFFF, len(raw)) + raw
    return encoded


def _study(destination: Destination, association: Association, data: bytes) -> StudyFound:
    try:
        values = find(data, IMPLICIT_VR_LITTLE_ENDIAN, _WANTED).values
    except HeaderError as error:
        association.abort()
        raise PeerError(f"destination {destination}: an identifier of its answer cannot be read") from error

    def text(tag: int) -> str:
        return decode_text(values.get(tag, b""), values.get(_CHARACTER_SET, b""))

    uid = text(_STUDY)
    if not is_valid(uid):
        association.abort()
        raise PeerError(f"destination {destination}: a study of its answer has no Study Instance UID")
    count = text(_INSTANCES)
    return StudyFound(
        study_instance_uid=uid,
        study_date=text(_STUDY_DATE),
        modalities=tuple(part.strip() for part in text(_MODALITIES).split("\\") if part.strip()),
        instances=int(count) if count.isascii() and count.isdigit() and len(count) < 10 else None,
        patient_id=text(_PATIENT_ID),
        issuer_of_patient_id=text(_ISSUER),
        description=text(_DESCRIPTION),
    )
