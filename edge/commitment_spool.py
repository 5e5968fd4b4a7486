"""Requests for storage commitment as files, until the peer has its report.

    <root>/asked/<key>.json      a peer asked and was answered; `receive` has yet to look
    <root>/reports/<key>.json    what is to be said, which `deliver` brings to the peer

Owns the files; each is whole or not there, and survives a power cut. `receive` writes both
directories, `deliver` works off the second. A key is made of hashes of what the peer named: the
first part stands for peer and Transaction UID, the second for the instances.

Security: no name of a file is made of anything from the wire.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from dicom.commitment import CommitmentReport, CommitmentRequest, Reference
from model_store.durable import make_directory, write_file

log = logging.getLogger(__name__)

MAX_FILE_BYTES: Final = 64 * 1024 * 1024
"""100,000 references with two UIDs of 64 bytes are 14 MB; a longer file is not ours."""

_TRANSACTION_DIGITS: Final = 32
_REFERENCES_DIGITS: Final = 16


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that was answered with success."""

    calling_ae_title: str
    request: CommitmentRequest
    is_duplicate: bool
    """Its Transaction UID was in use for other instances: all of it will be reported as failed."""
    at: datetime

    @property
    def key(self) -> str:
        """The name of its files."""
        names = "\0".join(f"{each.sop_class_uid} {each.sop_instance_uid}" for each in self.request.references)
        digest = hashlib.sha256(names.encode()).hexdigest()[:_REFERENCES_DIGITS]
        return f"{_transaction(self.calling_ae_title, self.request.transaction_uid)}-{digest}"


@dataclass(frozen=True, slots=True)
class Report:
    """What a peer is to be told, and how often it was tried."""

    key: str
    calling_ae_title: str
    content: CommitmentReport
    asked: datetime
    attempt: int = 0
    first_attempt: datetime | None = None
    not_before: datetime | None = None
    is_parked: bool = False
    reason: str = ""
    """Why the last attempt failed."""


class CommitmentSpool:
    """The files below `root`. Thread-safe: each file has one writer at a time, and is replaced whole."""

    def __init__(self, root: Path) -> None:
        self._asked = root / "asked"
        self._reports = root / "reports"

    def make(self) -> None:
        """Make the directories, and remove what a crash left half written.

        Raises:
            OSError: the disk does not let us.
        """
        for directory in (self._asked, self._reports):
            make_directory(directory)
            for torn in directory.glob(".*.tmp"):
                torn.unlink(missing_ok=True)

    def count(self) -> int:
        """How many requests have no report yet that their peer took."""
        return sum(1 for directory in (self._asked, self._reports) for _ in directory.glob("*.json"))

    def states(self) -> dict[str, int]:
        """How many requests are "asked", how many reports "waiting" and "parked"."""
        reports = self.reports()
        parked = sum(report.is_parked for report in reports)
        asked = sum(1 for _ in self._asked.glob("*.json"))
        return {"asked": asked, "waiting": len(reports) - parked, "parked": parked}

    def is_in_use(self, asked: Asked) -> bool:
        """Whether its peer has asked with this Transaction UID for other instances, and waits."""
        begin = asked.key[:_TRANSACTION_DIGITS]
        return any(
            found.stem != asked.key
            for directory in (self._asked, self._reports)
            for found in directory.glob(f"{begin}-*.json")
        )

    def ask(self, asked: Asked) -> None:
        """Keep a request.

        Raises:
            OSError: the disk does not take it.
        """
        facts = {
            "calling_ae_title": asked.calling_ae_title,
            "transaction_uid": asked.request.transaction_uid,
            "references": [_pair(each) for each in asked.request.references],
            "is_duplicate": asked.is_duplicate,
            "at": asked.at.isoformat(),
        }
        write_file(self._asked / f"{asked.key}.json", json.dumps(facts).encode())

    def asked(self) -> Iterator[Asked]:
        """The requests that nobody has looked after: those of a process that ended."""
        for facts in _facts(self._asked):
            references = tuple(Reference(*pair) for pair in facts["references"])
            yield Asked(
                facts["calling_ae_title"],
                CommitmentRequest(facts["transaction_uid"], references),
                bool(facts["is_duplicate"]),
                datetime.fromisoformat(facts["at"]),
            )

    def settle(self, asked: Asked) -> None:
        """The peer has the report: forget the request."""
        (self._asked / f"{asked.key}.json").unlink(missing_ok=True)

    def hand_over(self, asked: Asked, report: CommitmentReport) -> None:
        """Leave the report to `deliver`, and the request with it.

        Raises:
            OSError: the disk does not take it; the request is kept.
        """
        self.keep(Report(asked.key, asked.calling_ae_title, report, asked.at))
        self.settle(asked)

    def keep(self, report: Report) -> None:
        """Write a report, in place of what was known of it.

        Raises:
            OSError: the disk does not take it.
        """
        facts = {
            "key": report.key,
            "calling_ae_title": report.calling_ae_title,
            "transaction_uid": report.content.transaction_uid,
            "committed": [_pair(each) for each in report.content.committed],
            "failed": [[*_pair(each), reason] for each, reason in report.content.failed],
            "asked": report.asked.isoformat(),
            "attempt": report.attempt,
            "first_attempt": _text(report.first_attempt),
            "not_before": _text(report.not_before),
            "is_parked": report.is_parked,
            "reason": report.reason,
        }
        write_file(self._reports / f"{report.key}.json", json.dumps(facts).encode())

    def reports(self) -> Sequence[Report]:
        """All reports that no peer has taken, the oldest first."""
        return sorted(map(_report, _facts(self._reports)), key=lambda report: (report.asked, report.key))

    def drop(self, report: Report) -> None:
        """The peer has it."""
        (self._reports / f"{report.key}.json").unlink(missing_ok=True)

    def revive(self) -> int:
        """Have every parked report tried again; how many there were.

        Raises:
            OSError: the disk does not let us.
        """
        parked = [report for report in self.reports() if report.is_parked]
        for report in parked:
            self.keep(replace(report, is_parked=False, attempt=0, first_attempt=None, not_before=None))
        return len(parked)


def _transaction(calling_ae_title: str, transaction_uid: str) -> str:
    name = f"{calling_ae_title}\0{transaction_uid}"
    return hashlib.sha256(name.encode()).hexdigest()[:_TRANSACTION_DIGITS]


def _facts(directory: Path) -> Iterator[Mapping[str, Any]]:
    """What stands in the files of `directory`; one that cannot be read is logged and left."""
    if not directory.is_dir():
        return
    for path in sorted(directory.glob("*.json")):
        try:
            with path.open("rb") as file:
                raw = file.read(MAX_FILE_BYTES + 1)
            if len(raw) > MAX_FILE_BYTES:
                raise ValueError(f"more than {MAX_FILE_BYTES} bytes")
            facts = json.loads(raw)
            _report(facts) if "committed" in facts else datetime.fromisoformat(facts["at"])
        except FileNotFoundError:  # the other role was faster
            continue
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.error("storage commitment %s cannot be read, and stays: %s", path.name, type(error).__name__)
            continue
        yield facts


def _report(facts: Mapping[str, Any]) -> Report:
    return Report(
        key=facts["key"],
        calling_ae_title=facts["calling_ae_title"],
        content=CommitmentReport(
            facts["transaction_uid"],
            tuple(Reference(*pair) for pair in facts["committed"]),
            tuple((Reference(one, other), int(reason)) for one, other, reason in facts["failed"]),
        ),
        asked=datetime.fromisoformat(facts["asked"]),
        attempt=int(facts["attempt"]),
        first_attempt=_instant(facts["first_attempt"]),
        not_before=_instant(facts["not_before"]),
        is_parked=bool(facts["is_parked"]),
        reason=facts["reason"],
    )


def _pair(reference: Reference) -> list[str]:
    return [reference.sop_class_uid, reference.sop_instance_uid]


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _instant(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
