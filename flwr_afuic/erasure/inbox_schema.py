"""Tables of a site's inbox, as numbered migrations, and its keys.

Samples and patients are held by their ids, which the hospital's own tools know them by; what
was erased is kept as marks: HMACs of ids under a key that never leaves. Once the hospital has
deleted a sample and :meth:`SiteInbox.note_held` has heard of it, nothing here names it or its
patient any more.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import sqlite3
from collections.abc import Iterable

from flwr_afuic.state.database import Migration

APPLICATION = 0x41465842
"""Tells an inbox from other SQLite files."""

PATIENT = "patient"
"""Purpose of the key of patients' marks."""

_FIRST = """
CREATE TABLE IF NOT EXISTS secret (name TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS request (
    id TEXT PRIMARY KEY,
    scope TEXT NOT NULL,
    count INTEGER NOT NULL,
    commitment TEXT NOT NULL,
    reason TEXT NOT NULL,
    note TEXT NOT NULL,
    filed_at REAL NOT NULL,
    status TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS erased (
    request_id TEXT NOT NULL REFERENCES request(id),
    sample_id TEXT NOT NULL,
    PRIMARY KEY (request_id, sample_id)
);
"""

_SECOND = """
CREATE TABLE held (sample_id TEXT PRIMARY KEY, mark BLOB NOT NULL);
CREATE INDEX held_by_mark ON held (mark);
CREATE TABLE setting (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE erased_mark (
    request_id TEXT NOT NULL REFERENCES request(id),
    mark BLOB NOT NULL,
    PRIMARY KEY (request_id, mark)
);
CREATE TABLE release (
    requests TEXT NOT NULL,
    delta BLOB NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (requests, delta)
);
CREATE TABLE server (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    pinned TEXT NOT NULL,
    key TEXT NOT NULL,
    federation TEXT NOT NULL
);
CREATE TABLE server_key (key TEXT PRIMARY KEY);
CREATE TABLE head (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    seq INTEGER NOT NULL,
    hash TEXT NOT NULL,
    json TEXT NOT NULL,
    received_at REAL NOT NULL
);
CREATE TABLE alarm (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    about TEXT NOT NULL,
    text TEXT NOT NULL,
    first_at REAL NOT NULL,
    last_at REAL NOT NULL,
    times INTEGER NOT NULL,
    UNIQUE (kind, about)
);
CREATE TABLE certificate (
    request_id TEXT NOT NULL,
    issue INTEGER NOT NULL,
    document BLOB NOT NULL,
    signature TEXT NOT NULL,
    key TEXT NOT NULL,
    received_at REAL NOT NULL,
    PRIMARY KEY (request_id, issue)
);
"""

_THIRD = """
ALTER TABLE held ADD COLUMN patient_id TEXT;
ALTER TABLE held ADD COLUMN patient_mark BLOB;
CREATE INDEX held_by_patient ON held (patient_mark);
CREATE TABLE erased_patient (
    request_id TEXT NOT NULL REFERENCES request(id),
    mark BLOB NOT NULL,
    PRIMARY KEY (request_id, mark)
);
"""


def _execute(connection: sqlite3.Connection, script: str) -> None:
    for statement in script.split(";"):  # no text in these scripts holds a semicolon
        connection.execute(statement)


def _make(connection: sqlite3.Connection) -> None:
    _execute(connection, _FIRST)
    connection.execute(
        "INSERT OR IGNORE INTO secret VALUES ('commitment', ?)", (secrets.token_bytes(32),)
    )


def _upgrade(connection: sqlite3.Connection) -> None:
    """Replace the ids of erased samples by their marks; they stay among those held."""
    _execute(connection, _SECOND)
    old = connection.execute("SELECT request_id, sample_id FROM erased").fetchall()
    hold(connection, (sample for _, sample in old))
    key = derived(connection, "mark")
    connection.executemany(
        "INSERT INTO erased_mark VALUES (?, ?)", [(r, mark(key, sample)) for r, sample in old]
    )
    connection.execute("DROP TABLE erased")
    connection.execute("ALTER TABLE erased_mark RENAME TO erased")


def _add_patients(connection: sqlite3.Connection) -> None:
    _execute(connection, _THIRD)


def _add_failures(connection: sqlite3.Connection) -> None:
    connection.execute("ALTER TABLE request ADD COLUMN failure TEXT NOT NULL DEFAULT ''")


MIGRATIONS: tuple[Migration, ...] = (_make, _upgrade, _add_patients, _add_failures)


def secret(connection: sqlite3.Connection) -> bytes:
    """Return the site's own secret, made once."""
    row = connection.execute("SELECT value FROM secret WHERE name = 'commitment'").fetchone()
    return bytes(row[0])


def derived(connection: sqlite3.Connection, purpose: str) -> bytes:
    """Return a key for one purpose, which says nothing of the others."""
    return hmac.digest(secret(connection), f"flwr-afuic {purpose}".encode(), "sha256")


def mark(key: bytes, sample_id: str) -> bytes:
    """Return the HMAC by which an erased sample is known."""
    return hmac.digest(key, _text(sample_id), "sha256")


def commitment(connection: sqlite3.Connection, ids: Iterable[str]) -> str:
    """Return the keyed commitment to a sorted list of ids: it travels, the key does not."""
    return hmac.new(secret(connection), _text(list(ids)), hashlib.sha256).hexdigest()


def digest_of(ids: Iterable[str]) -> str:
    """Return what tells one list of ids from another; it stays in the file."""
    return hashlib.sha256(_text(sorted(ids))).hexdigest()


def hold(connection: sqlite3.Connection, ids: Iterable[str]) -> None:
    """Enter samples among those held, as far as they are not."""
    key = derived(connection, "mark")
    connection.executemany(
        "INSERT OR IGNORE INTO held (sample_id, mark) VALUES (?, ?)",
        ((i, mark(key, i)) for i in ids),
    )


def name_patients(connection: sqlite3.Connection, patients: Iterable[tuple[str, str]]) -> None:
    """Note whose each held sample is: pairs of sample and patient."""
    key = derived(connection, PATIENT)
    connection.executemany(
        "UPDATE held SET patient_id = ?, patient_mark = ? WHERE sample_id = ?",
        ((patient, mark(key, patient), sample) for sample, patient in patients),
    )


def _text(value: str | list[str]) -> bytes:
    return json.dumps(value).encode()
