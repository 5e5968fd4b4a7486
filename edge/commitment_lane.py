"""Reports of storage commitment on associations of our own, to the peers that asked (PS3.4 §J.3.3).

Owns the thread of role `deliver` that brings them: what `edge.commitment` left in the spool because
the association on which it was asked had ended. A report that a peer does not take is tried again with
growing, random pauses, and then parked: kept, shown, and revived by `insitu commitment retry`.

*Diagnostics*: one line for each report, each failed attempt, each parking. *Security*: calls the
configured peers, and nobody else.
"""

import logging
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import Final

from dicom.commitment import STORAGE_COMMITMENT_PUSH_MODEL, TRANSFER_SYNTAXES, write_report
from dicom.commitment_service import event_report
from dicom.errors import PeerError
from dicom.requestor import Association, Timeouts
from edge.calling import destination_of
from edge.commitment_spool import CommitmentSpool, Report
from edge.deliver import next_attempt
from edge.options import Peer, Settings
from edge.tls import TlsFileError

log = logging.getLogger(__name__)

SUCCESS: Final = 0x0000


class CommitmentReporter:
    """Works off the reports of a spool; `report_due` is what a ticker calls."""

    def __init__(self, settings: Settings, spool: CommitmentSpool, clock: Callable[[], datetime]) -> None:
        self._peers = {peer.ae_title: peer for peer in settings.peers}
        self._settings = settings
        self._spool = spool
        self._clock = clock
        self._rng = random.Random()  # noqa: S311 - spreads attempts in time, keeps no secret
        options = settings.deliver
        self._timeouts = Timeouts(
            connect_s=options.connect_timeout_s,
            associate_s=options.connect_timeout_s,
            response_s=options.response_timeout_s,
        )

    def report_due(self) -> bool:
        """Try every report that is due, the oldest first; False: nothing else waits for this.

        After a failure the other reports to the same peer wait too: a dead one costs one attempt.

        Raises:
            OSError: the disk does not let us.
        """
        dead: dict[str, str] = {}
        for report in self._spool.reports():
            now = self._clock()
            if report.is_parked or (report.not_before is not None and report.not_before > now):
                continue
            reason = dead.get(report.calling_ae_title)
            if reason is None:
                reason = self._try(report)
                if not reason:
                    self._spool.drop(report)
                    log.info("storage commitment: %s has its report", report.calling_ae_title)
                    continue
                dead[report.calling_ae_title] = reason
            self._defer(report, reason)
        return False

    def _try(self, report: Report) -> str:
        """Why `report` could not be brought; empty when the peer has taken it."""
        peer = self._peers.get(report.calling_ae_title)
        if peer is None:
            return f"no [[peer]] has the AE title {report.calling_ae_title} any more"
        try:
            return self._send(peer, report)
        except (PeerError, TlsFileError) as error:
            return str(error)

    def _send(self, peer: Peer, report: Report) -> str:
        destination = destination_of(peer, self._settings)
        syntaxes = [(STORAGE_COMMITMENT_PUSH_MODEL, syntax) for syntax in TRANSFER_SYNTAXES]
        association = Association(
            destination,
            self._settings.node.ae_title,
            syntaxes,
            self._timeouts,
            as_scp=[STORAGE_COMMITMENT_PUSH_MODEL],
        )
        try:
            accepted = next((syntax for syntax in syntaxes if syntax in association.accepted), None)
            if accepted is None:
                return f"destination {destination}: it does not accept Storage Commitment, with us as SCP"
            status = association.report_event(
                accepted, event_report(report.content), write_report(report.content, accepted[1])
            )
        finally:
            with suppress(PeerError):
                association.release()
        return "" if status == SUCCESS else f"destination {destination}: answered with status 0x{status:04X}"

    def _defer(self, report: Report, reason: str) -> None:
        now = self._clock()
        attempt, first = report.attempt + 1, report.first_attempt or now
        due = next_attempt(attempt, first, now, self._settings.deliver, self._rng)
        is_parked = due is None or report.calling_ae_title not in self._peers
        self._spool.keep(
            replace(
                report,
                attempt=attempt,
                first_attempt=first,
                not_before=due,
                is_parked=is_parked,
                reason=reason,
            )
        )
        if is_parked:
            log.error("storage commitment: parked: %s; next: insitu commitment retry", reason)
        else:
            log.warning("storage commitment: attempt %d failed: %s", attempt, reason)
