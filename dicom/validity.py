"""Which value of a source's attribute a result may repeat (PS3.5 §6.2).

Rules only: text in, text out; "" means that the attribute is left empty or away. What an
archive files by is repeated exactly, for a shortened Patient ID is another patient's;
what people read is shortened to its allowed length; a date, number or code that is none is dropped.
"""

import math
import re
from collections.abc import Callable, Mapping
from datetime import date, time
from typing import Final

from dicom.element import decimal


def printable(text: str) -> str:
    """The text with spaces for control characters, without those around it."""
    return "".join(
        " " if ord(character) < 32 or ord(character) == 127 else character for character in text
    ).strip()


def _exact(text: str) -> str:
    return text if text.isprintable() else printable(text)


def _long(text: str) -> str:
    return printable(text).replace("\\", "/")[:64].rstrip()


def _person(text: str) -> str:
    groups = printable(text).replace("\\", "/").split("=")[:3]
    return "=".join("^".join(group.split("^")[:5])[:64].rstrip() for group in groups)


def _code_string(text: str) -> str:
    value = text.upper()
    return value if re.fullmatch(r"[A-Z0-9_ ]{1,16}", value) else ""


def _code_strings(text: str) -> str:
    parts = [part.strip() for part in text.split("\\")]
    return "\\".join(parts) if all(_code_string(part) for part in parts) else ""


def _sex(text: str) -> str:
    return text if text in {"M", "F", "O"} else ""


def _yes_no(text: str) -> str:
    return text if text in {"YES", "NO"} else ""


def _date(text: str) -> str:
    match = re.fullmatch(r"(\d{4})[.-]?(\d{2})[.-]?(\d{2})", text, re.ASCII)  # ACR-NEMA wrote 1999.12.31
    try:
        return date(*map(int, match.groups())).strftime("%Y%m%d") if match else ""
    except ValueError:
        return ""


def _time(text: str) -> str:
    match = re.fullmatch(r"(\d{2})(?::?(\d{2})(?::?(\d{2})(?:\.(\d{1,6}))?\d*)?)?", text, re.ASCII)
    if not match:
        return ""
    hour, minute, second, fraction = match.groups()
    try:
        time(int(hour), int(minute or 0), min(int(second or 0), 59))  # 60 is a leap second
    except ValueError:
        return ""
    return "".join(part for part in (hour, minute, second) if part) + (f".{fraction}" if fraction else "")


def _age(text: str) -> str:
    return text if re.fullmatch(r"\d{3}[DWMY]", text, re.ASCII) else ""


def _offset(text: str) -> str:
    return text if re.fullmatch(r"[+-](0\d|1[0-4])[0-5]\d", text, re.ASCII) else ""


def _decimal(text: str) -> str:
    try:
        value = float(text)
    except ValueError:
        return ""
    if not math.isfinite(value) or value < 0:
        return ""
    return text if re.fullmatch(r"[0-9+.eE-]{1,16}", text) else decimal(value)


def _decimals(text: str) -> str:
    parts = [_decimal(part.strip()) for part in text.split("\\")]
    return "\\".join(parts) if all(parts) else ""


RULES: Final[Mapping[str, Callable[[str], str]]] = {
    "PatientName": _person,
    "PatientID": _exact,
    "IssuerOfPatientID": _exact,
    "PatientBirthDate": _date,
    "PatientSex": _sex,
    "PatientAge": _age,
    "PatientSize": _decimal,
    "PatientWeight": _decimal,
    "PatientIdentityRemoved": _yes_no,
    "DeidentificationMethod": _long,
    "StudyDate": _date,
    "StudyTime": _time,
    "AccessionNumber": _exact,
    "ReferringPhysicianName": _person,
    "StudyDescription": _long,
    "StudyID": _exact,
    "TimezoneOffsetFromUTC": _offset,
    "PositionReferenceIndicator": _long,
    "BodyPartExamined": _code_string,
    "PatientOrientation": _code_strings,
    "LossyImageCompression": _code_string,
    "LossyImageCompressionRatio": _decimals,
    "LossyImageCompressionMethod": _code_strings,
}
