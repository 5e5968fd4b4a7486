"""The journal's tables, as a list of migrations; the number applied stands in `user_version`.

A migration that has been released is never changed: a new one is appended.
"""

from typing import Final

MIGRATIONS: Final[tuple[str, ...]] = (
    """
    CREATE TABLE study (
        study_key TEXT PRIMARY KEY,
        study_instance_uid TEXT NOT NULL,
        calling_ae_title TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('open', 'closed', 'deleted')),
        revision INTEGER NOT NULL,
        first_received TEXT NOT NULL,
        last_received TEXT NOT NULL,
        closed_by TEXT,
        closed TEXT
    ) STRICT;
    CREATE TABLE instance (
        study_key TEXT NOT NULL REFERENCES study,
        instance_key TEXT NOT NULL,
        series_instance_uid TEXT NOT NULL,
        sop_instance_uid TEXT NOT NULL,
        header TEXT NOT NULL,
        size_bytes INTEGER NOT NULL,
        received TEXT NOT NULL,
        revision INTEGER NOT NULL,
        PRIMARY KEY (study_key, instance_key)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE decision (
        study_key TEXT NOT NULL REFERENCES study,
        revision INTEGER NOT NULL,
        series_instance_uid TEXT NOT NULL,
        model TEXT NOT NULL,
        model_digest TEXT NOT NULL,
        inputs_digest TEXT NOT NULL,
        accepted INTEGER NOT NULL,
        reason TEXT NOT NULL
    ) STRICT;
    CREATE INDEX decision_study ON decision (study_key);
    CREATE TABLE item (
        item_key TEXT PRIMARY KEY,
        study_key TEXT NOT NULL REFERENCES study,
        revision INTEGER NOT NULL,
        stage TEXT NOT NULL,
        held_at TEXT,
        reason TEXT NOT NULL DEFAULT '',
        attempt INTEGER NOT NULL DEFAULT 0,
        not_before TEXT NOT NULL,
        claimed INTEGER NOT NULL DEFAULT 0,
        created TEXT NOT NULL,
        updated TEXT NOT NULL,
        model TEXT,
        model_digest TEXT,
        series_instance_uid TEXT,
        inputs TEXT NOT NULL DEFAULT '[]',
        predecessor TEXT
    ) STRICT;
    CREATE INDEX item_stage ON item (stage, claimed, not_before);
    CREATE INDEX item_study ON item (study_key);
    CREATE TABLE result (
        sop_instance_uid TEXT PRIMARY KEY,
        item_key TEXT NOT NULL REFERENCES item,
        kind TEXT NOT NULL,
        sop_class_uid TEXT NOT NULL,
        series_instance_uid TEXT NOT NULL,
        size_bytes INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX result_item ON result (item_key);
    CREATE TABLE delivery (
        item_key TEXT NOT NULL REFERENCES item,
        destination TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('waiting', 'delivered', 'parked')),
        attempt INTEGER NOT NULL DEFAULT 0,
        first_attempt TEXT,
        not_before TEXT NOT NULL,
        claimed INTEGER NOT NULL DEFAULT 0,
        reason TEXT NOT NULL DEFAULT '',
        delivered TEXT,
        PRIMARY KEY (item_key, destination)
    ) STRICT;
    CREATE INDEX delivery_due ON delivery (destination, state, claimed, not_before);
    CREATE TABLE event (
        number INTEGER PRIMARY KEY,
        study_key TEXT NOT NULL,
        item_key TEXT,
        at TEXT NOT NULL,
        what TEXT NOT NULL,
        detail TEXT NOT NULL DEFAULT ''
    ) STRICT;
    CREATE INDEX event_study ON event (study_key);
    CREATE TABLE audit (
        number INTEGER PRIMARY KEY,
        at TEXT NOT NULL,
        who TEXT NOT NULL,
        what TEXT NOT NULL,
        detail TEXT NOT NULL,
        hash TEXT NOT NULL
    ) STRICT;
    CREATE TABLE fact (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
    """,
)
