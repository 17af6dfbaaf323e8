"""The tables of the state directory's database."""

from __future__ import annotations

from flwr_afuic.state.database import Migration

APPLICATION = 0x41465531
"""Marks ``state.sqlite`` as such ("AFU1")."""

_FIRST = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE setting (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE version (
    number INTEGER PRIMARY KEY, round INTEGER NOT NULL, time REAL NOT NULL, wall REAL NOT NULL,
    cause TEXT NOT NULL, sites TEXT NOT NULL, digest TEXT NOT NULL
);
CREATE TABLE holding (
    purpose TEXT NOT NULL, key TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (purpose, key)
);
CREATE INDEX holding_digest ON holding (digest);
CREATE TABLE released (
    digest TEXT NOT NULL, purpose TEXT NOT NULL, key TEXT NOT NULL,
    PRIMARY KEY (digest, purpose, key)
);
CREATE TABLE request (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, site TEXT NOT NULL, scope TEXT NOT NULL,
    state TEXT NOT NULL, count INTEGER NOT NULL, reason TEXT NOT NULL, filed_at REAL NOT NULL,
    body TEXT NOT NULL
);
CREATE TABLE ledger (
    seq INTEGER PRIMARY KEY, time REAL NOT NULL, kind TEXT NOT NULL, body TEXT NOT NULL,
    previous TEXT NOT NULL, hash TEXT NOT NULL
);
CREATE TRIGGER ledger_keeps_its_rows BEFORE UPDATE ON ledger
BEGIN SELECT RAISE(ABORT, 'the ledger only grows'); END;
CREATE TRIGGER ledger_loses_no_row BEFORE DELETE ON ledger
BEGIN SELECT RAISE(ABORT, 'the ledger only grows'); END;
CREATE TABLE head (
    id INTEGER PRIMARY KEY CHECK (id = 1), federation TEXT NOT NULL, seq INTEGER NOT NULL,
    hash TEXT NOT NULL, time REAL NOT NULL, key TEXT NOT NULL, signature TEXT NOT NULL
);
CREATE TABLE event (
    number INTEGER PRIMARY KEY, time REAL NOT NULL, wall REAL NOT NULL, round INTEGER NOT NULL,
    version INTEGER NOT NULL, kind TEXT NOT NULL, site TEXT NOT NULL, text TEXT NOT NULL
);
CREATE TABLE site_update (
    number INTEGER PRIMARY KEY, wall REAL NOT NULL, time REAL NOT NULL, round INTEGER NOT NULL,
    version INTEGER NOT NULL, site TEXT NOT NULL, base_version INTEGER NOT NULL,
    staleness INTEGER NOT NULL, examples INTEGER NOT NULL, fate TEXT NOT NULL,
    reason TEXT NOT NULL
);
CREATE TABLE metric (
    round INTEGER NOT NULL, source TEXT NOT NULL, name TEXT NOT NULL, value REAL,
    PRIMARY KEY (round, source, name)
);
CREATE TABLE purge (
    number INTEGER PRIMARY KEY, digest TEXT NOT NULL, file TEXT NOT NULL, bytes INTEGER NOT NULL,
    purposes TEXT NOT NULL, reason TEXT NOT NULL, request_id TEXT NOT NULL, wall REAL NOT NULL,
    done INTEGER NOT NULL
);
CREATE TABLE command (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, kind TEXT NOT NULL,
    request_id TEXT NOT NULL, site TEXT NOT NULL, reason TEXT NOT NULL, method TEXT NOT NULL,
    note TEXT NOT NULL, filed_at REAL NOT NULL, outcome TEXT, done_at REAL
);
CREATE TABLE certificate (
    request_id TEXT NOT NULL, issue INTEGER NOT NULL, file TEXT NOT NULL, sha256 TEXT NOT NULL,
    wall REAL NOT NULL, PRIMARY KEY (request_id, issue)
);
"""

MIGRATIONS: tuple[Migration, ...] = (_FIRST,)
"""One entry per schema number; a released one is never changed."""
