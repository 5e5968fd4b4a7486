"""The journal's file: one SQLite database, its connection, migrations and transactions.

Owns how the file is opened and written safely, the single facts, the history of events
and the audit chained by hash; what the tables mean is `edge.journal`'s and
`edge.deliveries`'.

Every transaction is durable when it ends (WAL, synchronous FULL). Safe to use from
several threads and several processes.
"""

import contextlib
import hashlib
import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Final, Self

from edge.schema import MIGRATIONS

BUSY_TIMEOUT_S: Final = 30.0
"""The longest wait for another process's write; a write takes milliseconds, a backup seconds."""


class JournalError(Exception):
    """The journal cannot be opened or used; the message says what to do."""


class Database:
    """One connection to the journal file."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self.path = path
        self._connection = connection
        self._lock = threading.RLock()

    @classmethod
    def open(cls, path: Path, *, readonly: bool = False) -> Self:
        """Open, and unless `readonly` make and migrate, the journal at `path`.

        Raises:
            JournalError: damaged, or made by a newer version of the appliance.
        """
        if readonly and not path.exists():
            raise JournalError(f"{path}: there is no journal yet; `insitu run` makes it")
        try:
            mode = "ro" if readonly else "rwc"
            connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode={mode}",
                uri=True,
                timeout=BUSY_TIMEOUT_S,
                isolation_level=None,
                check_same_thread=False,
            )
            connection.row_factory = sqlite3.Row
            if not readonly:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            database = cls(connection, path)
            if not readonly:
                database._migrate()
        except sqlite3.DatabaseError as error:
            raise JournalError(
                f"{path}: {error}; move the file aside and start again: it is rebuilt from the instances"
            ) from error
        return database

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._connection.close()

    def _migrate(self) -> None:
        with self.transaction() as write:
            applied = int(write.execute("PRAGMA user_version").fetchone()[0])
            if applied > len(MIGRATIONS):
                raise JournalError(
                    f"{self.path}: schema {applied} is newer than this version's {len(MIGRATIONS)}; "
                    "install the version that made it, or restore a backup"
                )
            for migration in MIGRATIONS[applied:]:
                for statement in migration.split(";"):
                    write.execute(statement)
            write.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, and durable at the end."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # a full disk may have ended it (SQLITE_FULL)
                    self._connection.execute("ROLLBACK")
                raise

    def read(self, sql: str, *values: object) -> list[sqlite3.Row]:
        """The rows that `sql` selects."""
        with self._lock:
            return self._connection.execute(sql, values).fetchall()

    def fact(self, name: str) -> str | None:
        """A single value kept by name."""
        rows = self.read("SELECT value FROM fact WHERE name = ?", name)
        return str(rows[0]["value"]) if rows else None

    def set_fact(self, name: str, value: str) -> None:
        """Keep `value` under `name`."""
        with self.transaction() as write:
            set_fact(write, name, value)

    def broken_audit(self) -> int | None:
        """Number of the first audit row that does not follow from the one before; None when all do."""
        previous = ""
        for row in self.read("SELECT * FROM audit ORDER BY number"):
            if row["hash"] != _chained(previous, row["at"], row["who"], row["what"], row["detail"]):
                return int(row["number"])
            previous = row["hash"]
        return None

    def audit(self, who: str, what: str, detail: Mapping[str, object], now: datetime) -> None:
        """Append to the audit table, chained by hash."""
        with self.transaction() as write:
            add_audit(write, now.isoformat(), who, what, detail)


def set_fact(write: sqlite3.Connection, name: str, value: str) -> None:
    """Keep `value` under `name`, within a transaction."""
    write.execute("INSERT OR REPLACE INTO fact VALUES (?, ?)", (name, value))


def add_event(
    write: sqlite3.Connection,
    study_key: str,
    at: str,
    what: str,
    detail: str = "",
    item_key: str | None = None,
) -> None:
    """Append to the history of a study, within a transaction."""
    write.execute(
        "INSERT INTO event (study_key, item_key, at, what, detail) VALUES (?, ?, ?, ?, ?)",
        (study_key, item_key, at, what, detail),
    )


def add_audit(write: sqlite3.Connection, at: str, who: str, what: str, detail: Mapping[str, object]) -> None:
    """Append to the audit, within a transaction: each row's hash covers the one before."""
    last = write.execute("SELECT hash FROM audit ORDER BY number DESC LIMIT 1").fetchone()
    text = json.dumps(dict(detail), sort_keys=True)
    write.execute(
        "INSERT INTO audit (at, who, what, detail, hash) VALUES (?, ?, ?, ?, ?)",
        (at, who, what, text, _chained(last["hash"] if last else "", at, who, what, text)),
    )


def _chained(previous: str, *parts: str) -> str:
    return hashlib.sha256("\n".join((previous, *parts)).encode()).hexdigest()
