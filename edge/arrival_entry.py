"""What the arrival log says, and how one entry is written as a line of JSON.

Owns the entries and their form. A line is read back strictly: what is missing, of
another type, or could not have been written here makes it no entry. Attributes of a
header that have their default value are left out.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Final

from dicom.header import InstanceHeader


@dataclass(frozen=True, slots=True)
class Arrival:
    """One instance that became durable."""

    study_key: str
    instance_key: str
    size_bytes: int
    """Of the file as it is stored."""
    checksum: int | None
    """CRC-32 of the encoded data set; None where it was not received in this run but found."""
    header: InstanceHeader
    calling_ae_title: str
    association: str
    """Unique across restarts; empty for an instance that was found by `InstanceStore.scan`."""
    received: datetime


@dataclass(frozen=True, slots=True)
class AssociationEnded:
    """An association is over; `how` is "released" where its peer took leave as PS3.8 §7.2 says."""

    association: str
    calling_ae_title: str
    how: str
    at: datetime


@dataclass(frozen=True, slots=True)
class CommitmentAsked:
    """A peer asked for storage commitment (N-ACTION, PS3.4 §J.3.2): it has sent what it names.

    A request that names more than `MAX_NAMED_INSTANCES` is written as several entries.
    """

    association: str
    """On which it was asked, named as in `Arrival`: often another one than brought the instances."""
    calling_ae_title: str
    instance_keys: tuple[str, ...]
    """Of the instances that it names (`edge.instances.instance_key` of each SOP Instance UID)."""
    at: datetime


Entry = Arrival | AssociationEnded | CommitmentAsked

MAX_NAMED_INSTANCES: Final = 20_000
"""In one entry: 0.7 MB, for a reader takes no line above 1 MiB; the largest studies have half as many."""

MAX_NAME_CHARACTERS: Final = 256
"""Of an association, of an AE title, of how an association ended: those written here are below 100."""
MAX_NUMBER: Final = 2**63 - 1
"""What the journal's columns hold."""


def to_line(entry: Entry) -> bytes:
    """`entry` as one line, with its end."""
    return json.dumps(_to_json(entry), separators=(",", ":"), allow_nan=False).encode() + b"\n"


def from_line(line: bytes) -> Entry:
    """The entry that `to_line` wrote.

    Raises:
        ValueError: the line is no entry.
    """
    try:
        return _from_json(json.loads(line))
    except (TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(f"no entry of the arrival log: {type(error).__name__}") from error


def _to_json(entry: Entry) -> dict[str, object]:
    if isinstance(entry, AssociationEnded):
        return {
            "entry": "ended",
            "association": entry.association,
            "calling_ae_title": entry.calling_ae_title,
            "how": entry.how,
            "at": entry.at.isoformat(),
        }
    if isinstance(entry, CommitmentAsked):
        return {
            "entry": "commitment",
            "association": entry.association,
            "calling_ae_title": entry.calling_ae_title,
            "instance_keys": entry.instance_keys,
            "at": entry.at.isoformat(),
        }
    header = {name: value for name, default in _DEFAULTS if (value := getattr(entry.header, name)) != default}
    return {
        "entry": "arrival",
        "study_key": entry.study_key,
        "instance_key": entry.instance_key,
        "size_bytes": entry.size_bytes,
        "checksum": entry.checksum,
        "header": header,
        "calling_ae_title": entry.calling_ae_title,
        "association": entry.association,
        "received": entry.received.isoformat(),
    }


def _from_json(entry: Mapping[str, Any]) -> Entry:
    """Raises ValueError, TypeError or KeyError where a value is missing or of another type."""
    kind = entry["entry"]
    if kind == "ended":
        return AssociationEnded(
            association=_name(entry["association"]),
            calling_ae_title=_name(entry["calling_ae_title"]),
            how=_name(entry["how"]),
            at=_instant(entry["at"]),
        )
    if kind == "commitment":
        return CommitmentAsked(
            association=_name(entry["association"]),
            calling_ae_title=_name(entry["calling_ae_title"]),
            instance_keys=tuple([_key(part) for part in _list(entry["instance_keys"])]),
            at=_instant(entry["at"]),
        )
    if kind != "arrival":
        raise ValueError("neither an arrival, nor an end, nor a request for commitment")
    header = {name: _PARSERS[name](value) for name, value in entry["header"].items()}
    return Arrival(
        study_key=_key(entry["study_key"]),
        instance_key=_key(entry["instance_key"]),
        size_bytes=_size(entry["size_bytes"]),
        checksum=None if entry["checksum"] is None else _size(entry["checksum"]),
        header=InstanceHeader(**header),
        calling_ae_title=_name(entry["calling_ae_title"]),
        association=_name(entry["association"]),
        received=_instant(entry["received"]),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _key(value: object) -> str:
    key = _text(value)
    if not _KEY.fullmatch(key):  # it becomes a path
        raise ValueError("not a key")
    return key


def _name(value: object) -> str:
    name = _text(value)
    if len(name) > MAX_NAME_CHARACTERS:
        raise ValueError(f"a name of {len(name)} characters, allowed {MAX_NAME_CHARACTERS}")
    return name


def _size(value: object) -> int:
    size = _number(value)
    if size < 0:
        raise ValueError("below 0")
    return size


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError("not a whole number")
    if abs(value) > MAX_NUMBER:
        raise ValueError("a number of more than 63 bits")
    return value


def _decimal(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError("not a number")
    if value - value != 0:  # json reads NaN and Infinity, too
        raise ValueError("not a finite number")
    return float(value)


def _instant(value: object) -> datetime:
    instant = datetime.fromisoformat(_text(value))
    if instant.tzinfo is None:
        raise ValueError("a time without its offset from UTC")
    return instant


def _texts(value: object) -> tuple[str, ...]:
    return tuple([_text(part) for part in _list(value)])


def _decimals(count: int) -> Callable[[object], tuple[float, ...]]:
    def parse(value: object) -> tuple[float, ...]:
        parts = _list(value)
        if len(parts) != count:
            raise ValueError(f"not {count} numbers")
        return tuple([_decimal(part) for part in parts])

    return parse


def _list(value: object) -> Sequence[object]:
    if not isinstance(value, list):
        raise TypeError("not a list")
    return value


_KEY: Final = re.compile(r"[0-9a-f]{32}")
_BY_TYPE: Final[Mapping[object, Callable[[object], object]]] = {
    str: _text,
    int: _number,
    int | None: _number,
    float | None: _decimal,
    tuple[str, ...]: _texts,
    tuple[float, float] | None: _decimals(2),
    tuple[float, float, float] | None: _decimals(3),
    tuple[float, float, float, float, float, float] | None: _decimals(6),
}
_PARSERS: Final[Mapping[str, Callable[[object], Any]]] = {
    field.name: _BY_TYPE[field.type] for field in fields(InstanceHeader)
}
_DEFAULTS: Final = tuple((field.name, field.default) for field in fields(InstanceHeader))
