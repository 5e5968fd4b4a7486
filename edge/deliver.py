"""deliver: an item's result objects to one destination, until it has them or is given up.

Owns one lane (thread) for each destination, the associations that are kept open between studies,
and the times of further attempts. What is delivered is said by the destination's own answers; what
it does not take is tried again with growing, random pauses, and then *parked*: kept, shown with its
reason, and revived by `insitu study retry`. Nothing is dropped, and nothing is tried for ever.

It makes no object and reads none: files go out as `edge.produce` wrote them.

*Diagnostics*: one line for each delivery, each failed attempt, each parking. *Security*: calls out to
the configured destinations, and to nobody else.
"""

import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from dicom.errors import PeerError
from dicom.send import Destination, Receipt, Sender, Timeouts
from edge.bell import Wake
from edge.calling import destination_of
from edge.deliveries import Deliveries
from edge.failures import verdict_of
from edge.journal import Journal
from edge.options import Deliver as DeliverOptions
from edge.options import Peer, Settings
from edge.records import Delivery
from edge.study import Outcome

log = logging.getLogger(__name__)

LOOK_AGAIN_S: Final = 1.0
"""A ring may be lost, a time may come, an association may have been idle long enough."""


@dataclass(frozen=True, slots=True)
class DeliveryOutcome:
    """What one attempt at one destination came to."""

    receipts: tuple[Receipt, ...]
    """One for each object that the destination answered, in the order sent."""
    reason: str = ""
    """Why it is not delivered, in words; empty when the destination has all objects."""

    @property
    def delivered(self) -> bool:
        """Whether the destination has all objects."""
        return not self.reason

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the destination remarked on objects that it took."""
        return tuple(receipt.reason for receipt in self.receipts if receipt.warning or receipt.duplicate)


class SenderPool:
    """Associations that are kept open between deliveries; safe to use from several threads.

    A sender is lent to one thread at a time; two threads that send to one destination at once have
    two associations. It keeps no thread: its owner calls `close_idle` now and then.
    """

    def __init__(
        self,
        calling_ae_title: str,
        keep_association_s: float,
        timeouts: Timeouts | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._calling_ae_title = calling_ae_title
        self._keep_association_s = keep_association_s
        self._timeouts = timeouts or Timeouts()
        self._clock = clock
        self._lock = threading.Lock()
        self._idle: list[tuple[float, Sender]] = []
        """When it was given back, oldest first."""

    @contextlib.contextmanager
    def lend(self, destination: Destination) -> Iterator[Sender]:
        """A sender to `destination` for the length of a `with`: a kept one, or a new one."""
        sender = self._take(destination)
        try:
            yield sender
        except BaseException:
            sender.abort()
            raise
        self._give_back(sender)

    def close_idle(self) -> None:
        """Release the associations that have been idle for `keep_association_s`."""
        latest = self._clock() - self._keep_association_s
        with self._lock:
            old = [sender for since, sender in self._idle if since <= latest]
            self._idle = [(since, sender) for since, sender in self._idle if since > latest]
        for sender in old:
            sender.close()

    def close(self) -> None:
        """Release all that are idle."""
        with self._lock:
            idle, self._idle = self._idle, []
        for _, sender in idle:
            sender.close()

    def _take(self, destination: Destination) -> Sender:
        with self._lock:
            for index in range(len(self._idle) - 1, -1, -1):
                if self._idle[index][1].destination == destination:
                    return self._idle.pop(index)[1]
        return Sender(destination, self._calling_ae_title, self._timeouts)

    def _give_back(self, sender: Sender) -> None:
        if not sender.connected:
            return
        if self._keep_association_s <= 0:
            sender.close()
            return
        with self._lock:
            self._idle.append((self._clock(), sender))


def deliver(objects: Sequence[Path], destination: Destination, pool: SenderPool) -> DeliveryOutcome:
    """Send `objects` to `destination` over one association, in order.

    What the destination does, or fails to do, is in the outcome.

    Raises:
        HeaderError: one of `objects` is not a DICOM file; nothing has been sent.
        OSError: one of them cannot be read.
    """
    receipts: list[Receipt] = []
    try:
        with pool.lend(destination) as sender:
            receipts.extend(sender.send_each(objects))
    except PeerError as error:
        return DeliveryOutcome(tuple(receipts), str(error))
    # A result's UID depends on all that it was made from: what the destination has under it is this object,
    # from an attempt whose answer we did not see.
    refused = [
        f"{receipt.sop_instance_uid}: {receipt.reason}"
        for receipt in receipts
        if receipt.failure and not receipt.duplicate
    ]
    if refused:
        said = "; ".join(refused)
        return DeliveryOutcome(tuple(receipts), f"destination {destination} did not take SOP Instance {said}")
    return DeliveryOutcome(tuple(receipts))


def next_attempt(
    attempt: int, first_attempt: datetime, now: datetime, options: DeliverOptions, rng: random.Random
) -> datetime | None:
    """When to try again after `attempt` has failed; None when the delivery is to be parked.

    The pause is drawn between 0 and `backoff_base_s` doubled with each attempt, at most `backoff_max_s`
    (full jitter): destinations that come back are not met by all deliveries at once. The last attempt is
    made when the delivery reaches `park_after_s`, however long the pause would be.

    Args:
        attempt: number of the attempt that failed, from 1.
        first_attempt: when the first one was made.
        now: aware, UTC.
        options: pauses and limits.
        rng: where the jitter comes from.
    """
    give_up = first_attempt + timedelta(seconds=options.park_after_s)
    if attempt >= options.attempts or now >= give_up:
        return None
    # 2^64 base pauses are beyond any cap; the exponent is bounded because a float is.
    longest_s = min(options.backoff_base_s * 2.0 ** min(attempt - 1, 64), options.backoff_max_s)
    return min(now + timedelta(seconds=rng.uniform(0.0, longest_s)), give_up)


class DeliveryLane(threading.Thread):
    """Works off the deliveries to one destination, one after the other."""

    def __init__(
        self,
        peer: Peer,
        settings: Settings,
        journal: Journal,
        deliveries: Deliveries,
        results: Path,
        wake: Wake,
        clock: Callable[[], datetime],
    ) -> None:
        super().__init__(name=f"deliver-{peer.name}", daemon=True)
        self._destination = destination_of(peer, settings)
        self._options = settings.deliver
        self._journal = journal
        self._deliveries = deliveries
        self._results = results
        self._wake = wake
        self._clock = clock
        self._rng = random.Random()  # noqa: S311 - spreads attempts in time, keeps no secret
        timeouts = Timeouts(
            connect_s=self._options.connect_timeout_s,
            associate_s=self._options.connect_timeout_s,
            response_s=self._options.response_timeout_s,
        )
        self._pool = SenderPool(settings.node.ae_title, self._options.keep_association_s, timeouts)
        self._stopping = threading.Event()

    def run(self) -> None:
        """Work until `stop`; then release the association."""
        while not self._stopping.is_set():
            seen = self._wake.count
            try:
                idle = not self.step()
            except Exception:  # the journal itself fails: the disk is full, say; keep trying
                log.exception("%s: cannot use the journal, trying again", self.name)
                idle = True
            self._pool.close_idle()
            if idle:
                self._wake.wait(seen, LOOK_AGAIN_S)
        self._pool.close()

    def step(self) -> bool:
        """Work off one delivery if one is due; whether there was one."""
        delivery = self._deliveries.claim(self._destination.name, self._clock())
        if delivery is None:
            return False
        if delivery.attempt > self._options.attempts:  # counted before each: this one was never answered for
            self._park(delivery, f"{delivery.attempt - 1} attempts, and the process died in the last")
            return True
        directory = self._results / delivery.study_key / delivery.item_key
        objects = [directory / f"{row.kind}.dcm" for row in self._journal.results(delivery.item_key)]
        try:
            outcome = deliver(objects, self._destination, self._pool)
        except Exception as error:
            verdict = verdict_of(error)
            log.error("study %s: %s", delivery.study_key[:12], error, exc_info=not verdict.expected)
            reason = f"{error}; {verdict.next_step}"
            if verdict.outcome is Outcome.RETRY:
                self._defer(delivery, reason)
            else:
                self._park(delivery, reason)
        else:
            if outcome.delivered:
                self._delivered(delivery, outcome)
            else:
                self._defer(delivery, outcome.reason)
        self._wake.ring()
        return True

    def stop(self) -> None:
        """Begin no further delivery; `join` waits for the one in hand."""
        self._stopping.set()
        self._wake.ring()

    def _delivered(self, delivery: Delivery, outcome: DeliveryOutcome) -> None:
        self._deliveries.delivered(delivery, self._clock())
        log.info(
            "study %s: %d objects delivered to %s%s",
            delivery.study_key[:12],
            len(outcome.receipts),
            self._destination,
            "".join(f"; {warning}" for warning in outcome.warnings),
        )

    def _defer(self, delivery: Delivery, reason: str) -> None:
        now = self._clock()
        due = next_attempt(delivery.attempt, delivery.first_attempt, now, self._options, self._rng)
        if due is None:
            since = delivery.first_attempt.isoformat(timespec="seconds")
            said = f"{reason}; given up after {delivery.attempt} attempts since {since}"
            self._park(delivery, f"{said}; next: mend the destination, then insitu study retry")
            return
        self._deliveries.defer(delivery, reason, due, now)
        log.warning(
            "study %s: attempt %d failed, the next in %.1f s: %s",
            delivery.study_key[:12],
            delivery.attempt,
            (due - now).total_seconds(),
            reason,
        )

    def _park(self, delivery: Delivery, reason: str) -> None:
        self._deliveries.park(delivery, reason, self._clock())
        log.error("study %s: parked: %s", delivery.study_key[:12], reason)
