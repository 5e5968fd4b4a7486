"""Deliveries: each item's results to each destination, with attempts of their own.

Owns the rows that `produce` enters and `deliver` works off. When the last destination of
an item is served, the item is delivered; when one stayed dead, the item is held.
"""

from collections.abc import Sequence
from datetime import datetime

from edge.database import add_event
from edge.journal import Journal
from edge.records import Delivery


class Deliveries:
    """The delivery rows of a journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def claim(self, destination: str, now: datetime) -> Delivery | None:
        """The oldest due delivery to `destination`, claimed and its attempt counted."""
        at = now.isoformat()
        oldest = (
            "SELECT rowid FROM delivery WHERE destination = ? AND state = 'waiting' AND claimed = 0"
            " AND not_before <= ? ORDER BY not_before, item_key LIMIT 1"
        )
        if not self._journal.read(oldest, destination, at):  # most looks find nothing: no lock for these
            return None
        with self._journal.transaction() as write:
            row = write.execute(
                "UPDATE delivery SET attempt = attempt + 1, claimed = 1,"
                f" first_attempt = coalesce(first_attempt, ?) WHERE rowid = ({oldest}) RETURNING *",
                (at, destination, at),
            ).fetchone()
            if row is None:
                return None
            study = write.execute(
                "SELECT study_key FROM item WHERE item_key = ?", (row["item_key"],)
            ).fetchone()
        return Delivery(
            row["item_key"],
            study["study_key"],
            destination,
            row["attempt"],
            datetime.fromisoformat(row["first_attempt"]),
        )

    def delivered(self, delivery: Delivery, now: datetime) -> None:
        """The destination has all objects of the item."""
        self._set_state(delivery, "delivered", "", now, now)

    def defer(self, delivery: Delivery, reason: str, not_before: datetime, now: datetime) -> None:
        """The attempt failed; the next is due at `not_before`."""
        self._set_state(delivery, "waiting", reason, not_before, now)

    def park(self, delivery: Delivery, reason: str, now: datetime) -> None:
        """The destination stayed dead: nothing more is tried until a person says so."""
        self._set_state(delivery, "parked", reason, now, now)

    def _set_state(
        self, delivery: Delivery, state: str, reason: str, not_before: datetime, now: datetime
    ) -> None:
        at = now.isoformat()
        with self._journal.transaction() as write:
            write.execute(
                "UPDATE delivery SET state = ?, reason = ?, not_before = ?, claimed = 0, delivered = ?"
                " WHERE item_key = ? AND destination = ?",
                (
                    state,
                    reason,
                    not_before.isoformat(),
                    at if state == "delivered" else None,
                    delivery.item_key,
                    delivery.destination,
                ),
            )
            what = f"deliver to {delivery.destination}: {state}, attempt {delivery.attempt}"
            add_event(write, delivery.study_key, at, what, reason, delivery.item_key)
            if state != "waiting":
                self._journal.settle(write, delivery.item_key, now, reason)

    def enter_missing(self, destinations: Sequence[str], now: datetime) -> int:
        """Enter deliveries for DELIVER items that have none (released after a peer was configured)."""
        without = (
            "SELECT item_key FROM item WHERE stage = 'deliver'"
            " AND NOT EXISTS (SELECT 1 FROM delivery WHERE delivery.item_key = item.item_key)"
        )
        if not self._journal.read(without):
            return 0
        with self._journal.transaction() as write:
            rows = write.execute(without).fetchall()
            for row in rows:
                write.executemany(
                    "INSERT INTO delivery (item_key, destination, state, not_before)"
                    " VALUES (?, ?, 'waiting', ?)",
                    [(row["item_key"], destination, now.isoformat()) for destination in destinations],
                )
                if not destinations:
                    self._journal.settle(
                        write, row["item_key"], now, "no peer receives results: configure one"
                    )
        return len(rows)

    def unclaim(self) -> int:
        """Put back what a process that is gone had claimed; the attempts stay counted."""
        with self._journal.transaction() as write:
            return write.execute("UPDATE delivery SET claimed = 0 WHERE claimed = 1").rowcount

    def next_due(self, destination: str) -> datetime | None:
        """When the next attempt for `destination` is due; None when nothing waits."""
        rows = self._journal.read(
            "SELECT min(not_before) AS due FROM delivery"
            " WHERE destination = ? AND state = 'waiting' AND claimed = 0",
            destination,
        )
        return datetime.fromisoformat(rows[0]["due"]) if rows[0]["due"] else None
