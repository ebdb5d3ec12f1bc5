//! Schema of the journal, version by version.

use crate::db::Shape;

/// `labd` in ASCII marks the file.
pub(super) const SHAPE: Shape = Shape { migrations: MIGRATIONS, application_id: 0x6c61_6264, what: "a journal" };

const MIGRATIONS: &[&str] = &[
    "CREATE TABLE events (
        seq     INTEGER PRIMARY KEY,
        at_ms   INTEGER NOT NULL,
        service TEXT,
        kind    TEXT NOT NULL,
        what    TEXT NOT NULL,
        reason  TEXT NOT NULL
    ) STRICT;
    CREATE INDEX events_at ON events (at_ms);
    CREATE INDEX events_service ON events (service, seq);",
    // Things that outlive labd (held services), and restarts counted without reading the whole history: adopting
    // a running lab has a second.
    "CREATE TABLE memory (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
    CREATE INDEX events_restarts ON events (service) WHERE kind = 'action' AND what = 'restart';",
    // One row per incident; the body is JSON, so that it can grow without a migration.
    "CREATE TABLE incidents (
        died_at_ms  INTEGER NOT NULL,
        service     TEXT NOT NULL,
        cause       TEXT NOT NULL,
        recovery_ms INTEGER,
        body        TEXT NOT NULL,
        PRIMARY KEY (died_at_ms, service)
    ) STRICT, WITHOUT ROWID;",
];
