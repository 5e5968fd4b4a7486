"""The journal: what is known of every study, and what is left to do.

Owns the writes of the stages about studies, decisions and work items; `edge.deliveries`
those about destinations; `edge.journal_view` reads for people. The files are the truth
about what was received: a journal that is lost is rebuilt from them (`edge.arrivals`
and `edge.assemble`). Rows hold no pixel and, of the patient, nothing but UIDs.

Each public method is one transaction, durable when it returns.
"""

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime

from dicom.header import InstanceHeader
from edge.database import Database, add_audit, add_event, set_fact
from edge.records import Decision, Item, NewItem, Received, ResultRow, header_from_json, item_from_row
from edge.study import END_STAGES, Outcome, Stage, next_stage


class Journal(Database):
    """Studies, decisions and work items."""

    def known_instances(self) -> frozenset[tuple[str, str]]:
        """Study key and instance key of all instances that are entered."""
        return frozenset(map(tuple, self.read("SELECT study_key, instance_key FROM instance")))

    def enter(self, arrivals: Sequence[Received], position: str | None = None) -> tuple[Received, ...]:
        """Enter instances, and the reader's position with them; return those that were new.

        An instance of a closed study opens it again, as its next revision.
        """
        new = []
        with self.transaction() as write:
            for arrival in arrivals:
                if self._enter(write, arrival):
                    new.append(arrival)
            if position is not None:
                set_fact(write, "arrivals", position)
        return tuple(new)

    def _enter(self, write: sqlite3.Connection, arrival: Received) -> bool:
        known = write.execute(
            "SELECT 1 FROM instance JOIN study USING (study_key)"
            " WHERE study_key = ? AND instance_key = ? AND state <> 'deleted'",
            (arrival.study_key, arrival.instance_key),
        )
        if known.fetchone():
            return False
        at = arrival.received.isoformat()
        study = write.execute("SELECT * FROM study WHERE study_key = ?", (arrival.study_key,)).fetchone()
        revision = 1
        if study is None:
            write.execute(
                "INSERT INTO study VALUES (?, ?, ?, 'open', 1, ?, ?, NULL, NULL)",
                (arrival.study_key, arrival.header.study_instance_uid, arrival.calling_ae_title, at, at),
            )
            add_event(write, arrival.study_key, at, "opened", f"by {arrival.calling_ae_title}")
        else:
            revision = study["revision"] + (study["state"] != "open")
            write.execute(
                "UPDATE study SET state = 'open', revision = ?, last_received = max(last_received, ?),"
                " closed = NULL, closed_by = NULL WHERE study_key = ?",
                (revision, at, arrival.study_key),
            )
            if study["state"] != "open":
                add_event(
                    write, arrival.study_key, at, "reopened", f"revision {revision}: an image came late"
                )
        header = json.dumps(asdict(arrival.header), separators=(",", ":"))
        write.execute(
            "INSERT OR REPLACE INTO instance VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                arrival.study_key,
                arrival.instance_key,
                arrival.header.series_instance_uid,
                arrival.header.sop_instance_uid,
                header,
                arrival.size_bytes,
                at,
                revision,
            ),
        )
        return True

    def open_studies(self) -> list[sqlite3.Row]:
        """Rows of the studies that still wait for images."""
        return self.read("SELECT * FROM study WHERE state = 'open'")

    def headers(self, study_key: str) -> dict[str, InstanceHeader]:
        """Instance key to header, for all instances of a study."""
        rows = self.read("SELECT instance_key, header FROM instance WHERE study_key = ?", study_key)
        return {row["instance_key"]: header_from_json(row["header"]) for row in rows}

    def decisions(self, study_key: str, revision: int) -> list[Decision]:
        """What was decided for one revision of a study; empty when there was none."""
        rows = self.read(
            "SELECT series_instance_uid, model, model_digest, inputs_digest, accepted, reason FROM decision"
            " WHERE study_key = ? AND revision = ? ORDER BY rowid",
            study_key,
            revision,
        )
        return [Decision(*row) for row in rows]

    def forget_instances(self, keys: Sequence[tuple[str, str]]) -> None:
        """Remove the rows of instances (study key, instance key) whose files are gone."""
        with self.transaction() as write:
            write.executemany("DELETE FROM instance WHERE study_key = ? AND instance_key = ?", keys)

    def close_study(self, study_key: str, closed_by: str, now: datetime) -> None:
        """Close the study's current revision and enter its ASSEMBLE item."""
        with self.transaction() as write:
            row = write.execute(
                "UPDATE study SET state = 'closed', closed_by = ?, closed = ?"
                " WHERE study_key = ? AND state = 'open' RETURNING revision",
                (closed_by, now.isoformat(), study_key),
            ).fetchone()
            if row is None:
                return
            revision = row["revision"]
            write.execute(
                "INSERT OR IGNORE INTO item"
                " (item_key, study_key, revision, stage, not_before, created, updated)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    f"{study_key}-{revision}",
                    study_key,
                    revision,
                    Stage.ASSEMBLE,
                    *[now.isoformat()] * 3,
                ),
            )
            add_event(write, study_key, now.isoformat(), "closed", f"revision {revision}, by {closed_by}")

    def assembled(
        self, item: Item, decisions: Sequence[Decision], items: Sequence[NewItem], now: datetime
    ) -> None:
        """End an ASSEMBLE item: keep the decisions, enter the models' items, all at once."""
        at = now.isoformat()
        with self.transaction() as write:
            write.execute(
                "DELETE FROM decision WHERE study_key = ? AND revision = ?", (item.study_key, item.revision)
            )
            write.executemany(
                "INSERT INTO decision VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        item.study_key,
                        item.revision,
                        each.series_instance_uid,
                        each.model,
                        each.model_digest,
                        each.inputs_digest,
                        int(each.accepted),
                        each.reason,
                    )
                    for each in decisions
                ],
            )
            for new in items:
                predecessor = _predecessor(write, item, new)
                write.execute(
                    "INSERT INTO item (item_key, study_key, revision, stage, not_before, created, updated,"
                    " model, model_digest, series_instance_uid, inputs, predecessor)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
                    # the same input came again after its results were deleted: make them again
                    " ON CONFLICT (item_key) DO UPDATE SET stage = excluded.stage, attempt = 0,"
                    " not_before = excluded.not_before, updated = excluded.updated, claimed = 0, reason = ''"
                    " WHERE NOT EXISTS (SELECT 1 FROM result WHERE result.item_key = item.item_key)"
                    " AND item.stage = 'delivered'",
                    (
                        new.item_key,
                        item.study_key,
                        item.revision,
                        Stage.INFER,
                        at,
                        at,
                        at,
                        new.model,
                        new.model_digest,
                        new.series_instance_uid,
                        json.dumps(new.inputs),
                        predecessor,
                    ),
                )
            outcome = Outcome.DONE if items or any(d.accepted for d in decisions) else Outcome.DECLINE
            reason = "" if outcome is Outcome.DONE else "no model wants any series of this study"
            self.move(write, item, outcome, reason, now)

    def claim(self, stages: Sequence[Stage], now: datetime, busy_models: Sequence[str] = ()) -> Item | None:
        """The oldest due item of one of `stages`, claimed; its attempt is counted before it begins."""
        wanted = ",".join("?" * len(stages))
        busy = ",".join("?" * len(busy_models))
        oldest = (
            f"SELECT item_key FROM item WHERE stage IN ({wanted}) AND claimed = 0 AND not_before <= ?"
            f" AND coalesce(model_digest, '') NOT IN ({busy}) ORDER BY created, item_key LIMIT 1"
        )
        values = (*stages, now.isoformat(), *busy_models)
        if not self.read(oldest, *values):  # most looks find nothing: these must not lock the file
            return None
        with self.transaction() as write:
            row = write.execute(
                "UPDATE item SET attempt = attempt + 1, claimed = 1, updated = ?"
                f" WHERE item_key = ({oldest}) RETURNING *",
                (now.isoformat(), *values),
            ).fetchone()
        return None if row is None else item_from_row(row)

    def advance(
        self,
        item: Item,
        outcome: Outcome,
        now: datetime,
        reason: str = "",
        not_before: datetime | None = None,
        detail: str = "",
    ) -> Stage:
        """Move a claimed item by the table of `edge.study`; the new stage.

        Args:
            item: as it was claimed.
            outcome: what the attempt came to.
            now: aware, UTC.
            reason: why, for people; stays with the item until its next move.
            not_before: when the next attempt is due.
            detail: for the history only.
        """
        with self.transaction() as write:
            stage = self.move(write, item, outcome, reason, now, not_before)
            if detail:
                add_event(write, item.study_key, now.isoformat(), f"{item.stage}", detail, item.item_key)
            return stage

    def produced(
        self, item: Item, results: Sequence[ResultRow], destinations: Sequence[str], now: datetime
    ) -> Stage:
        """End a PRODUCE item: enter its results and what is to be delivered where, all at once."""
        with self.transaction() as write:
            write.executemany(
                "INSERT OR REPLACE INTO result VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (
                        each.sop_instance_uid,
                        item.item_key,
                        each.kind,
                        each.sop_class_uid,
                        each.series_instance_uid,
                        each.size_bytes,
                    )
                    for each in results
                ],
            )
            write.executemany(
                "INSERT OR REPLACE INTO delivery (item_key, destination, state, not_before)"
                " VALUES (?, ?, 'waiting', ?)",
                [(item.item_key, destination, now.isoformat()) for destination in destinations],
            )
            stage = self.move(write, item, Outcome.DONE, "", now)
            if not destinations:
                reason = "no peer receives results: configure one, then `insitu study release`"
                self.settle(write, item.item_key, now, reason)
                stage = Stage.HELD
            return stage

    def move(
        self,
        write: sqlite3.Connection,
        item: Item,
        outcome: Outcome,
        reason: str,
        now: datetime,
        not_before: datetime | None = None,
    ) -> Stage:
        """Move an item by the table of `edge.study`, within a transaction."""
        stage = next_stage(item.stage, outcome)
        at = now.isoformat()
        write.execute(
            "UPDATE item SET stage = ?, held_at = ?, reason = ?,"
            " attempt = CASE WHEN ? THEN attempt ELSE 0 END, not_before = ?, claimed = 0, updated = ?"
            " WHERE item_key = ?",
            (
                stage,
                item.stage if stage is Stage.HELD else None,
                reason,
                int(stage is item.stage or stage in END_STAGES),
                (not_before or now).isoformat(),
                at,
                item.item_key,
            ),
        )
        add_event(write, item.study_key, at, f"{item.stage}: {outcome}", reason, item.item_key)
        return stage

    def unclaim(self, stages: Sequence[Stage]) -> int:
        """Put back what a process that is gone had claimed; the attempts stay counted."""
        with self.transaction() as write:
            wanted = ",".join("?" * len(stages))
            cursor = write.execute(
                f"UPDATE item SET claimed = 0 WHERE claimed = 1 AND stage IN ({wanted})", stages
            )
        return cursor.rowcount

    def release(self, study_key: str, who: str, now: datetime, *, waiting_too: bool = False) -> int:
        """Put held items back to the stage that held them, attempts from zero; how many.

        Args:
            study_key: the study.
            who: the operator, for the audit.
            now: aware, UTC.
            waiting_too: also make due at once what waits for its next attempt (`retry`).
        """
        at = now.isoformat()
        with self.transaction() as write:
            held = write.execute(
                "UPDATE item SET stage = held_at, held_at = NULL, attempt = 0, not_before = ?, updated = ?,"
                " reason = '' WHERE study_key = ? AND stage = 'held' RETURNING item_key",
                (at, at, study_key),
            ).fetchall()
            count = len(held)
            ours = "item_key IN (SELECT item_key FROM item WHERE study_key = ?)"
            write.execute(
                "UPDATE delivery SET state = 'waiting', attempt = 0, first_attempt = NULL, not_before = ?"
                f" WHERE state = 'parked' AND {ours}",
                (at, study_key),
            )
            if waiting_too:
                for table, due in (
                    ("item", "stage NOT IN ('delivered', 'declined', 'held')"),
                    ("delivery", "state = 'waiting'"),
                ):
                    count += write.execute(
                        f"UPDATE {table} SET not_before = ? WHERE not_before > ? AND {due} AND {ours}",
                        (at, at, study_key),
                    ).rowcount
            what = "study retry" if waiting_too else "study release"
            add_event(write, study_key, at, what, f"{count} items, by {who}")
            add_audit(write, at, who, what, {"study_key": study_key, "items": count})
        return count

    def results(self, item_key: str) -> list[ResultRow]:
        """The result objects of an item, in the order in which they are sent."""
        rows = self.read(
            "SELECT kind, sop_class_uid, sop_instance_uid, series_instance_uid, size_bytes FROM result"
            " WHERE item_key = ? ORDER BY kind = 'SC', kind = 'SR'",  # the report refers to the segmentation
            item_key,
        )
        return [ResultRow(**dict(row)) for row in rows]

    def settle(self, write: sqlite3.Connection, item_key: str, now: datetime, reason: str) -> None:
        """End a DELIVER item whose destinations have all been served, or parked."""
        states = {
            row["state"]
            for row in write.execute("SELECT DISTINCT state FROM delivery WHERE item_key = ?", (item_key,))
        }
        row = write.execute("SELECT * FROM item WHERE item_key = ?", (item_key,)).fetchone()
        if "waiting" in states or row["stage"] != Stage.DELIVER:
            return
        done = states == {"delivered"}
        self.move(
            write, item_from_row(row), Outcome.DONE if done else Outcome.HOLD, "" if done else reason, now
        )


def _predecessor(write: sqlite3.Connection, item: Item, new: NewItem) -> str | None:
    """The latest report of the same model on some of the same instances, which the new one replaces."""
    rows = write.execute(
        "SELECT study_instance_uid, result.series_instance_uid AS series, sop_class_uid, sop_instance_uid,"
        " inputs FROM result JOIN item USING (item_key) JOIN study USING (study_key)"
        " WHERE study_key = ? AND model = ? AND item.series_instance_uid = ? AND item_key <> ?"
        " AND kind = 'SR' ORDER BY item.revision DESC, item.created DESC",
        (item.study_key, new.model, new.series_instance_uid, new.item_key),
    )
    for row in rows:
        if not set(new.inputs).isdisjoint(json.loads(row["inputs"])):
            return json.dumps(list(row)[:4])
    return None
