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

    def instance_keys(self, study_key: str) -> list[str]:
        """The keys of a study's instances, sorted."""
        rows = self.read(
            "SELECT instance_key FROM instance WHERE study_key = ? ORDER BY instance_key", study_key
        )
        return [row["instance_key"] for row in rows]

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

    def close_study(self, study_key: str, closed_by: str, now: datetime, held: str = "") -> None:
        """Close the study's current revision and enter its ASSEMBLE item.

        Args:
            study_key: the study.
            closed_by: the sign.
            now: aware, UTC.
            held: why a person must look first; the item is then held from the beginning.
        """
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
                " (item_key, study_key, revision, stage, held_at, reason, not_before, created, updated)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    f"{study_key}-{revision}",
                    study_key,
                    revision,
                    Stage.HELD if held else Stage.ASSEMBLE,
                    Stage.ASSEMBLE if held else None,
                    held,
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
                _insert(write, item.study_key, item.revision, new, at)
                self._supersede(write, item, new, now)
            outcome = Outcome.DONE if items or any(d.accepted for d in decisions) else Outcome.DECLINE
            reason = "" if outcome is Outcome.DONE else "no model wants any series of this study"
            self.move(write, item, outcome, reason, now)

    def _supersede(self, write: sqlite3.Connection, item: Item, new: NewItem, now: datetime) -> None:
        """End what an earlier revision has not begun yet, on some of the same instances by the same model."""
        rows = write.execute(
            "SELECT * FROM item WHERE study_key = ? AND model = ? AND series_instance_uid = ?"
            " AND revision < ? AND item_key <> ? AND stage = ? AND claimed = 0",
            (
                item.study_key,
                new.model,
                new.series_instance_uid,
                item.revision,
                new.item_key,
                Stage.INFER,
            ),
        ).fetchall()
        for row in rows:
            if not set(new.inputs).isdisjoint(json.loads(row["inputs"])):
                reason = f"replaced by revision {item.revision} before it began: more images came"
                self.move(write, item_from_row(row), Outcome.DECLINE, reason, now)

    def begin(self, study_key: str, items: Sequence[NewItem], now: datetime) -> None:
        """Enter models' items of a study that is still open; `assembled` finds them entered."""
        with self.transaction() as write:
            row = write.execute("SELECT revision FROM study WHERE study_key = ?", (study_key,)).fetchone()
            for new in items:
                _insert(write, study_key, row["revision"], new, now.isoformat())

    def begun(self, study_key: str, revision: int) -> dict[str, str]:
        """Name to digest of the models whose items of this revision are entered already."""
        rows = self.read(
            "SELECT DISTINCT model, model_digest FROM item"
            " WHERE study_key = ? AND revision = ? AND model IS NOT NULL",
            study_key,
            revision,
        )
        return {row["model"]: row["model_digest"] for row in rows}

    def awaited_models(self) -> set[str]:
        """Digests of the models that some item still has to run."""
        rows = self.read("SELECT DISTINCT model_digest FROM item WHERE stage = ?", Stage.INFER)
        return {row["model_digest"] for row in rows}

    def is_awaited(self, study_key: str, *stages: Stage) -> bool:
        """Whether a study is open, or an item of it is in one of these stages."""
        wanted = ",".join("?" * len(stages))
        return bool(
            self.read(
                "SELECT 1 FROM study WHERE study_key = ? AND (state = 'open' OR EXISTS (SELECT 1 FROM item"
                f" WHERE item.study_key = study.study_key AND stage IN ({wanted})))",
                study_key,
                *stages,
            )
        )

    def flaw(self, arrival: Received, reason: str) -> None:
        """Say in a study's history that an instance could not be entered; the study is held at its close."""
        at = arrival.received.isoformat()
        uid = arrival.header.study_instance_uid
        with self.transaction() as write:
            write.execute(
                "INSERT INTO study VALUES (?, ?, ?, 'open', 1, ?, ?, NULL, NULL) ON CONFLICT DO NOTHING",
                (arrival.study_key, uid, arrival.calling_ae_title, at, at),
            )
            detail = f"instance {arrival.instance_key[:12]}: {reason}"
            add_event(write, arrival.study_key, at, "not entered", detail)

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
        *,
        counted: bool = True,
    ) -> Stage:
        """Move a claimed item by the table of `edge.study`; the new stage.

        Args:
            item: as it was claimed.
            outcome: what the attempt came to.
            now: aware, UTC.
            reason: why, for people; stays with the item until its next move.
            not_before: when the next attempt is due.
            detail: for the history only.
            counted: whether this attempt, and those before it, count against the item.
        """
        with self.transaction() as write:
            stage = self.move(write, item, outcome, reason, now, not_before, counted=counted)
            if detail:
                add_event(write, item.study_key, now.isoformat(), f"{item.stage}", detail, item.item_key)
            return stage

    def produced(
        self,
        item: Item,
        results: Sequence[ResultRow],
        destinations: Sequence[str],
        now: datetime,
        predecessor: tuple[str, str, str, str] | None = None,
    ) -> Stage:
        """End a PRODUCE item: enter its results and what is to be delivered where, all at once.

        Args:
            item: as it was claimed.
            results: its objects.
            destinations: names of the peers that get them.
            now: aware, UTC.
            predecessor: the report that its report says it replaces; kept, so that the same is made again.
        """
        with self.transaction() as write:
            write.execute(
                "UPDATE item SET predecessor = ? WHERE item_key = ?",
                (json.dumps(predecessor) if predecessor else None, item.item_key),
            )
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
        *,
        counted: bool = True,
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
                int(counted and (stage is item.stage or stage in END_STAGES)),
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


def _insert(write: sqlite3.Connection, study_key: str, revision: int, new: NewItem, at: str) -> None:
    """Enter a model's item, within a transaction, unless it is there."""
    write.execute(
        "INSERT INTO item (item_key, study_key, revision, stage, not_before, created, updated,"
        " model, model_digest, series_instance_uid, inputs) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        # the same input came again after its results were deleted: make them again
        " ON CONFLICT (item_key) DO UPDATE SET stage = excluded.stage, attempt = 0,"
        " not_before = excluded.not_before, updated = excluded.updated, claimed = 0, reason = ''"
        " WHERE NOT EXISTS (SELECT 1 FROM result WHERE result.item_key = item.item_key)"
        " AND item.stage = 'delivered'",
        (
            new.item_key,
            study_key,
            revision,
            Stage.INFER,
            at,
            at,
            at,
            new.model,
            new.model_digest,
            new.series_instance_uid,
            json.dumps(new.inputs),
        ),
    )
