"""What QIDO-RS and WADO-RS know of: the appliance's studies, their instances, and the results made of them.

Owns the search (PS3.18 §10.6: matching keys, paging) over the journal's rows; the attributes of patient
and study, which the journal does not keep, are read from one file of each study or series. Reads only.

Security: what is looked at for one search is bounded. A file is found by keys that are hashes of UIDs,
never by text of a request.
"""

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal

from dicom.dicomjson import Attributes, Json, element, texts
from dicom.errors import InstanceError
from edge.database import JournalError
from edge.instances import InstanceStore, study_key
from edge.journal import Journal
from edge.places import Places

MAX_STUDIES: Final = 5000
"""Studies that one search looks at, the latest first: a week of a large department; each costs 0.1 ms."""
KEPT: Final = 4096
"""Files whose attributes are kept in memory, 2 KB each."""

Level = Literal["study", "series", "instance"]

STUDY: Final[Mapping[int, str]] = {
    0x00080020: "DA",
    0x00080030: "TM",
    0x00080050: "SH",
    0x00080090: "PN",
    0x00081030: "LO",
    0x00100010: "PN",
    0x00100020: "LO",
    0x00100030: "DA",
    0x00100040: "CS",
    0x0020000D: "UI",
    0x00200010: "SH",
}
SERIES: Final[Mapping[int, str]] = {
    0x00080060: "CS",
    0x0008103E: "LO",
    0x0020000E: "UI",
    0x00200011: "IS",
    0x00400244: "DA",
    0x00400245: "TM",
}
INSTANCE: Final[Mapping[int, str]] = {
    0x00080016: "UI",
    0x00080018: "UI",
    0x00200013: "IS",
    0x00280008: "IS",
    0x00280010: "US",
    0x00280011: "US",
    0x00280100: "US",
}
MODALITIES_IN_STUDY: Final = "00080061"
KEYWORDS: Final[Mapping[str, str]] = {
    "StudyDate": "00080020",
    "StudyTime": "00080030",
    "AccessionNumber": "00080050",
    "ModalitiesInStudy": MODALITIES_IN_STUDY,
    "ReferringPhysicianName": "00080090",
    "StudyDescription": "00081030",
    "PatientName": "00100010",
    "PatientID": "00100020",
    "PatientBirthDate": "00100030",
    "PatientSex": "00100040",
    "StudyInstanceUID": "0020000D",
    "StudyID": "00200010",
    "Modality": "00080060",
    "SeriesDescription": "0008103E",
    "SeriesInstanceUID": "0020000E",
    "SeriesNumber": "00200011",
    "PerformedProcedureStepStartDate": "00400244",
    "PerformedProcedureStepStartTime": "00400245",
    "SOPClassUID": "00080016",
    "SOPInstanceUID": "00080018",
    "InstanceNumber": "00200013",
}
"""The matching keys, by their names in a query (PS3.18 §8.3.4.1)."""
_OF_STUDY: Final = frozenset(f"{tag:08X}" for tag in STUDY) | {MODALITIES_IN_STUDY}
_OF_SERIES: Final = frozenset(f"{tag:08X}" for tag in SERIES)
_RANGES: Final = frozenset({"00080020", "00080030", "00100030", "00400244", "00400245"})
_UIDS: Final = frozenset({"0020000D", "0020000E", "00080016", "00080018"})


@dataclass(frozen=True, slots=True)
class Stored:
    """One instance: received, or a result."""

    sop_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    modality: str
    path: Path


@dataclass(frozen=True, slots=True)
class Search:
    """One QIDO-RS search: keys are tags as eight hexadecimal digits."""

    level: Level
    keys: Mapping[str, str]
    limit: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """An answer, and whether more studies are here than were looked at."""

    entries: tuple[Json, ...]
    is_all: bool


class Catalogue:
    """Studies and their instances; safe to use from several threads."""

    def __init__(self, places: Places) -> None:
        """Opens nothing yet: the journal is made by another role, perhaps later."""
        self._places = places
        self._instances = InstanceStore(places.instances)
        self._journal: Journal | None = None
        self._read: Callable[[Path], Json] = lru_cache(KEPT)(Attributes({**STUDY, **SERIES, **INSTANCE}).read)

    def close(self) -> None:
        """Close the journal."""
        if self._journal is not None:
            self._journal.close()

    def instances(self, study: str, series: str = "", sop_instance: str = "") -> list[Stored]:
        """The instances of a study, or of one series or one instance of it, by UID; in no certain order."""
        return [
            each
            for each in self._stored(study_key(study))
            if series in {"", each.series_instance_uid} and sop_instance in {"", each.sop_instance_uid}
        ]

    def search(self, search: Search, url_of: Callable[[str, str, str], str]) -> Found:
        """Entries that match, as DICOM JSON.

        Args:
            search: what is looked for.
            url_of: makes the Retrieve URL of study, series and instance UID (the latter two may be empty).
        """
        wanted = search.keys.get("0020000D", "")
        keys = [study_key(uid) for uid in _listed(wanted)] if wanted else self._latest()
        is_all = len(keys) <= MAX_STUDIES
        entries: list[Json] = []
        skip = search.offset
        for key in keys[:MAX_STUDIES]:
            for entry in self._entries(key, search, url_of):
                if skip:
                    skip -= 1
                    continue
                entries.append(entry)
                if len(entries) == search.limit:
                    return Found(tuple(entries), is_all)
        return Found(tuple(entries), is_all)

    def _entries(self, key: str, search: Search, url_of: Callable[[str, str, str], str]) -> Iterator[Json]:
        stored = self._stored(key)
        head = self._first(stored)
        if head is None:
            return
        study_uid = texts(head.get("0020000D"))[0]
        modalities = sorted({each.modality for each in stored} - {""})
        study = _part(head, STUDY) | {
            "00080056": element("CS", "ONLINE"),
            MODALITIES_IN_STUDY: element("CS", *modalities),
            "00081190": element("UR", url_of(study_uid, "", "")),
            "00201206": element("IS", len({each.series_instance_uid for each in stored})),
            "00201208": element("IS", len(stored)),
        }
        if not _matches(study, {tag: text for tag, text in search.keys.items() if tag in _OF_STUDY}):
            return
        if search.level == "study":
            yield study
            return
        by_series: dict[str, list[Stored]] = {}
        for each in stored:
            by_series.setdefault(each.series_instance_uid, []).append(each)
        of_series = {tag: text for tag, text in search.keys.items() if tag in _OF_SERIES}
        of_instance = {t: x for t, x in search.keys.items() if t not in _OF_STUDY and t not in _OF_SERIES}
        for uid in sorted(by_series):
            members = by_series[uid]
            first = self._first(members)
            if first is None:
                continue
            series = _part(first, SERIES) | {
                "0020000D": element("UI", study_uid),
                "00081190": element("UR", url_of(study_uid, uid, "")),
                "00201209": element("IS", len(members)),
            }
            if not _matches(series, of_series):
                continue
            if search.level == "series":
                yield study | series
                continue
            yield from self._instance_entries(members, series, of_instance, url_of)

    def _instance_entries(
        self,
        members: Sequence[Stored],
        series: Json,
        keys: Mapping[str, str],
        url_of: Callable[[str, str, str], str],
    ) -> Iterator[Json]:
        study_uid = texts(series["0020000D"])[0]
        for each in sorted(members, key=lambda member: member.sop_instance_uid):
            head = self._attributes(each)
            if head is None:
                continue
            entry = {tag: value for tag, value in series.items() if tag not in {"00201209", "00081190"}}
            entry |= _part(head, INSTANCE) | {
                "00080056": element("CS", "ONLINE"),
                "00081190": element("UR", url_of(study_uid, each.series_instance_uid, each.sop_instance_uid)),
            }
            if _matches(entry, keys):
                yield entry

    def _open(self) -> Journal | None:
        if self._journal is None:
            try:
                self._journal = Journal.open(self._places.journal, readonly=True)
            except JournalError:
                return None  # nothing has arrived yet
        return self._journal

    def _latest(self) -> list[str]:
        journal = self._open()
        if journal is None:
            return []
        rows = journal.read(
            "SELECT study_key FROM study WHERE state <> 'deleted'"
            " ORDER BY last_received DESC, study_key LIMIT ?",
            MAX_STUDIES + 1,
        )
        return [row["study_key"] for row in rows]

    def _stored(self, key: str) -> list[Stored]:
        journal = self._open()
        if journal is None:
            return []
        received = journal.read(
            "SELECT instance_key, series_instance_uid, sop_instance_uid,"
            " json_extract(header, '$.sop_class_uid') AS sop_class_uid,"
            " json_extract(header, '$.modality') AS modality FROM instance WHERE study_key = ?",
            key,
        )
        made = journal.read(
            "SELECT item_key, kind, result.series_instance_uid, sop_instance_uid, sop_class_uid"
            " FROM result JOIN item USING (item_key) WHERE study_key = ?",
            key,
        )
        found = [
            Stored(
                row["sop_instance_uid"],
                row["series_instance_uid"],
                row["sop_class_uid"],
                row["modality"] or "",
                self._instances.path(key, row["instance_key"]),
            )
            for row in received
        ]
        found += [
            Stored(
                row["sop_instance_uid"],
                row["series_instance_uid"],
                row["sop_class_uid"],
                _MODALITY_OF_KIND.get(row["kind"], ""),
                self._places.results / key / row["item_key"] / f"{row['kind']}.dcm",
            )
            for row in made
        ]
        return found

    def _first(self, stored: Iterable[Stored]) -> Json | None:
        """The attributes of the first instance whose file can be read."""
        for each in stored:
            found = self._attributes(each)
            if found is not None:
                return found
        return None

    def _attributes(self, stored: Stored) -> Json | None:
        try:
            return self._read(stored.path)
        except (InstanceError, OSError):
            return None  # deleted meanwhile, or damaged: it cannot be shown


def _part(found: Json, tags: Mapping[int, str]) -> Json:
    """What of `found` belongs to a level; an attribute that is absent is empty there."""
    return {f"{tag:08X}": found.get(f"{tag:08X}", {"vr": vr}) for tag, vr in tags.items()}


def _matches(entry: Json, keys: Mapping[str, str]) -> bool:
    """Attribute matching (PS3.4 §C.2.2.2); a key without a value matches anything."""
    return all(_matches_one(tag, texts(entry.get(tag)), wanted) for tag, wanted in keys.items() if wanted)


def _matches_one(tag: str, values: Sequence[str], wanted: str) -> bool:
    if tag in _UIDS:
        return not set(values).isdisjoint(_listed(wanted))
    if tag in _RANGES:
        first, dash, last = wanted.partition("-")
        if not dash:
            return first in values
        return any(
            (not first or first <= value) and (not last or value[: len(last)] <= last) for value in values
        )
    if "*" not in wanted and "?" not in wanted:
        return wanted.casefold() in {value.casefold() for value in values}
    pattern = re.compile(fnmatch.translate(wanted.casefold().replace("[", "[[]")))
    return any(pattern.match(value.casefold()) for value in values)


def _listed(text: str) -> list[str]:
    return [part for part in re.split(r"[,\\]", text) if part]


_MODALITY_OF_KIND: Final = {"SEG": "SEG", "SR": "SR", "SC": "OT"}
