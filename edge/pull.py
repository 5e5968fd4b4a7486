"""Fetching studies from an archive: one by name, and earlier ones of a patient by rule.

Owns the two ways (C-MOVE to ourselves; WADO-RS, then C-STORE to ourselves) and the rules of the
configuration. A study that is fetched comes in as every other does: through the DICOM port, with its
limits, its durable steps and its place in the arrival log.

The rules run in role `deliver`, which calls out to the configured peers and reads no image: whose the
study is, the archive is asked. What a patient is called stays in memory for the length of that question.

*Diagnostics*: one line for each study that a rule has worked on, with counts; no identifier of a patient.
"""

import ipaddress
import logging
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import BinaryIO, Final

from dicom.errors import DicomError
from dicom.query import StudyFound, StudyQuery, find_studies, move_study
from dicom.requestor import Destination
from dicom.send import Sender
from dicom.web_client import WebClient
from edge.calling import destination_of
from edge.database import add_event
from edge.failures import verdict_of
from edge.instances import study_key
from edge.journal import Journal
from edge.options import Peer, Pull, Settings

log = logging.getLogger(__name__)

ATTEMPTS: Final = 5
"""An archive may enter a study minutes after we have it; then the rule has nothing to ask with."""
PAUSE_S: Final = 60.0
"""Between two attempts for one study."""
MAX_AGE_S: Final = 86_400.0
"""A rule works on studies that came within a day: one that is new must not fetch for a year's."""
ASKED: Final = "priors: asked"
DONE: Final = "priors: done"
_WILDCARDS: Final = frozenset("*?\\")


@dataclass(frozen=True, slots=True)
class Pulled:
    """What came, in instances."""

    instances: int
    failed: int


def own_node(settings: Settings) -> Destination:
    """This node, as one of its own processes reaches it."""
    host = settings.node.host
    try:
        if ipaddress.ip_address(host).is_unspecified:
            host = "127.0.0.1"
    except ValueError:
        pass  # a name
    return Destination("this node", settings.node.ae_title, host, settings.node.port)


def pull_by_move(archive: Destination, settings: Settings, study_instance_uid: str) -> Pulled:
    """Have `archive` send a study to us.

    Raises:
        PeerError: see `dicom.query.move_study`.
    """
    title = settings.node.ae_title
    moved = move_study(archive, title, study_instance_uid, title)
    return Pulled(moved.completed + moved.warning, moved.failed)


def pull_by_web(client: WebClient, settings: Settings, study_instance_uid: str) -> Pulled:
    """Retrieve a study by WADO-RS and hand it to our own DICOM port, in one association.

    Raises:
        PeerError: the node, or our own, cannot be reached, or refuses.
        OSError: the disk does not take what came.
    """
    limits = settings.limits
    with tempfile.TemporaryDirectory(prefix="insitu-pull-") as scratch:
        parts = _Files(Path(scratch), limits.max_object_bytes)
        client.retrieve_study(
            study_instance_uid, parts, limits.max_objects_per_association, settings.web.max_request_bytes
        )
        with Sender(own_node(settings), settings.node.ae_title) as sender:
            receipts = sender.send(parts.paths)
    failed = sum(receipt.failure for receipt in receipts) + parts.too_large
    return Pulled(len(receipts) + parts.too_large - failed, failed)


class PullRules:
    """The rules `[[pull]]`; `poll` is called now and then."""

    def __init__(self, settings: Settings, journal: Journal, clock: Callable[[], datetime]) -> None:
        self._settings = settings
        self._journal = journal
        self._clock = clock
        self._peers: Mapping[str, Peer] = {peer.name: peer for peer in settings.peers}

    def poll(self) -> bool:
        """Work on the studies that are due; True when there was one."""
        worked = False
        for rule in self._settings.pulls:
            for key, uid in self._due(rule):
                self._work(rule, key, uid)
                worked = True
        return worked

    def _due(self, rule: Pull) -> list[tuple[str, str]]:
        """Studies that fit the rule, have not been worked on, and rest no longer: key and UID."""
        now = self._clock()
        rows = self._journal.read(
            "SELECT study_key, study_instance_uid FROM study"
            " WHERE calling_ae_title = ? AND state <> 'deleted' AND first_received > ?"
            " AND EXISTS (SELECT 1 FROM instance WHERE instance.study_key = study.study_key"
            "  AND json_extract(header, '$.modality') = ?)"
            " AND NOT EXISTS (SELECT 1 FROM event WHERE event.study_key = study.study_key AND what = ?)"
            " AND (SELECT count(*) FROM event WHERE event.study_key = study.study_key AND what = ?) < ?"
            " AND NOT EXISTS (SELECT 1 FROM event WHERE event.study_key = study.study_key AND what = ?"
            "  AND at > ?)",
            self._peers[rule.sender].ae_title,
            (now - timedelta(seconds=MAX_AGE_S)).isoformat(),
            rule.modality,
            DONE,
            ASKED,
            ATTEMPTS,
            ASKED,
            (now - timedelta(seconds=PAUSE_S)).isoformat(),
        )
        return [(row["study_key"], row["study_instance_uid"]) for row in rows]

    def _work(self, rule: Pull, key: str, uid: str) -> None:
        self._note(key, ASKED, f"of {rule.archive}")  # counted before it begins
        peer = self._peers[rule.archive]
        archive = destination_of(peer, self._settings)
        try:
            priors = self._priors(rule, archive, uid)
            if priors is None:
                log.info("study %s: %s does not have it yet: no priors asked for", key[:12], rule.archive)
                return
            pulled = [self._fetch(archive, prior) for prior in priors]
        except (DicomError, OSError) as error:
            said = f"{error}; {verdict_of(error).next_step}"
            log.warning("study %s: priors were not fetched: %s", key[:12], said)
            return
        came, failed = sum(each.instances for each in pulled), sum(each.failed for each in pulled)
        detail = f"{len(pulled)} studies of {rule.archive}: {came} instances came, {failed} failed"
        self._note(key, DONE, detail)
        log.info("study %s: priors: %s", key[:12], detail)

    def _priors(self, rule: Pull, archive: Destination, uid: str) -> list[StudyFound] | None:
        """The latest earlier studies of the patient that we do not have; None: the archive lacks this one."""
        title = self._settings.node.ae_title
        asked = find_studies(archive, title, StudyQuery(study_instance_uid=uid))
        this = next((each for each in asked if each.study_instance_uid == uid), None)
        if this is None or not this.patient_id:
            return None
        if _WILDCARDS & set(this.patient_id):
            return []  # it would match other patients
        of_patient = find_studies(
            archive, title, StudyQuery(patient_id=this.patient_id, modality=rule.modality)
        )
        earlier = [
            each
            for each in of_patient
            if each.study_instance_uid != uid
            and (each.patient_id, each.issuer_of_patient_id) == (this.patient_id, this.issuer_of_patient_id)
            and rule.modality in each.modalities
            and each.study_date <= this.study_date
        ]
        earlier.sort(key=lambda each: each.study_date, reverse=True)
        return [each for each in earlier[: rule.max_priors] if not self._is_here(each.study_instance_uid)]

    def _fetch(self, archive: Destination, prior: StudyFound) -> Pulled:
        # Its own arrival must not set a rule off: the history would be fetched link by link.
        self._note(study_key(prior.study_instance_uid), DONE, "fetched as a prior itself")
        return pull_by_move(archive, self._settings, prior.study_instance_uid)

    def _is_here(self, uid: str) -> bool:
        rows = self._journal.read(
            "SELECT 1 FROM study WHERE study_key = ? AND state <> 'deleted'", study_key(uid)
        )
        return bool(rows)

    def _note(self, key: str, what: str, detail: str) -> None:
        with self._journal.transaction() as write:
            add_event(write, key, self._clock().isoformat(), what, detail)


class _Files:
    """Keeps the parts of an answer as files; a `dicom.multipart.PartHandler`."""

    def __init__(self, directory: Path, max_object_bytes: int) -> None:
        self.paths: list[Path] = []
        self.too_large = 0
        self._directory = directory
        self._max_object_bytes = max_object_bytes
        self._file: BinaryIO | None = None
        self._left = 0

    def part_begins(self, headers: Mapping[str, str]) -> None:  # noqa: ARG002 - a part is what it is
        path = self._directory / f"{len(self.paths)}.dcm"
        self.paths.append(path)
        self._file = path.open("wb")
        self._left = self._max_object_bytes

    def part_data(self, data: memoryview) -> None:
        self._left -= len(data)
        if self._file is not None and self._left >= 0:
            self._file.write(data)

    def part_ends(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._left < 0:
            self.paths.pop().unlink()
            self.too_large += 1
