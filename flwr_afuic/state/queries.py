"""Reading the state directory's database; none of these functions writes."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Sequence
from typing import Any

from flwr_afuic.erasure.canonical import canonical
from flwr_afuic.erasure.ledger import Head, Row
from flwr_afuic.errors import LedgerError, StateError, WireError
from flwr_afuic.state.rows import (
    CertificateRow,
    Command,
    MetricRow,
    PurgeRow,
    RequestRow,
    VersionRow,
)

_REQUEST = "id, site, scope, state, count, reason, filed_at, body"
_COMMAND = "id, kind, request_id, site, reason, method, note, filed_at, outcome, done_at"
EVENT_COLUMNS = ("time", "wall", "round", "version", "kind", "site", "text")
UPDATE_COLUMNS = (
    "wall",
    "time",
    "round",
    "version",
    "site",
    "base_version",
    "staleness",
    "examples",
    "fate",
    "reason",
)


def named(connection: sqlite3.Connection) -> bool:
    """Whether the federation has an id already."""
    return connection.execute("SELECT 1 FROM meta WHERE key = 'federation'").fetchone() is not None


def federation(connection: sqlite3.Connection) -> str:
    """Return the federation's id."""
    row = connection.execute("SELECT value FROM meta WHERE key = 'federation'").fetchone()
    if row is None:
        raise StateError("the state directory names no federation; restore it from a backup")
    return str(row[0])


def setting(connection: sqlite3.Connection, key: str, default: Any = None) -> Any:
    """Return a stored value, or ``default``."""
    row = connection.execute("SELECT value FROM setting WHERE key = ?", (key,)).fetchone()
    return default if row is None else json.loads(row[0])


def settings(connection: sqlite3.Connection) -> dict[str, Any]:
    """Return all stored values."""
    rows = connection.execute("SELECT key, value FROM setting ORDER BY key")
    return {key: json.loads(value) for key, value in rows}


def versions(connection: sqlite3.Connection) -> list[VersionRow]:
    """Return all versions, oldest first."""
    rows = connection.execute(
        "SELECT number, round, time, wall, cause, sites, digest FROM version ORDER BY number"
    )
    return [
        VersionRow(number, round, time, wall, cause, tuple(json.loads(sites)), digest)
        for number, round, time, wall, cause, sites, digest in rows
    ]


def holdings(connection: sqlite3.Connection) -> dict[tuple[str, str], str]:
    """Return what keeps a file of weights: (purpose, key) to digest."""
    rows = connection.execute("SELECT purpose, key, digest FROM holding ORDER BY purpose, key")
    return {(purpose, key): digest for purpose, key, digest in rows}


def requests(connection: sqlite3.Connection) -> list[RequestRow]:
    """Return all requests in the order they came in."""
    rows = connection.execute(f"SELECT {_REQUEST} FROM request ORDER BY number")  # noqa: S608
    return [_request(row) for row in rows]


def request(connection: sqlite3.Connection, request_id: str) -> RequestRow | None:
    """Return one request, or None."""
    row = connection.execute(
        f"SELECT {_REQUEST} FROM request WHERE id = ?",  # noqa: S608
        (request_id,),
    ).fetchone()
    return None if row is None else _request(row)


def _request(row: Sequence[Any]) -> RequestRow:
    request_id, site, scope, state, count, reason, filed_at, body = row
    return RequestRow(request_id, site, scope, state, count, reason, filed_at, json.loads(body))


def ledger(connection: sqlite3.Connection) -> list[Row]:
    """Return all rows of the ledger in order; rows that were tampered with included."""
    rows = connection.execute(
        "SELECT seq, time, kind, body, previous, hash FROM ledger ORDER BY seq"
    )
    return [_row(*row) for row in rows]


def row_hash(connection: sqlite3.Connection, seq: int) -> str | None:
    """Return the hash of one row of the ledger, None if there is no such row."""
    row = connection.execute("SELECT hash FROM ledger WHERE seq = ?", (seq,)).fetchone()
    return None if row is None else str(row[0])


def last_row(connection: sqlite3.Connection) -> Row | None:
    """Return the newest row of the ledger."""
    row = connection.execute(
        "SELECT seq, time, kind, body, previous, hash FROM ledger ORDER BY seq DESC LIMIT 1"
    ).fetchone()
    return None if row is None else _row(*row)


def _row(seq: int, time: Any, kind: Any, body: Any, previous: Any, digest: Any) -> Row:
    """Return a row whose hash can only be right if every stored byte is.

    A body that is not in canonical form is given as something that was never hashed, so
    that the chain reports it like any other change.
    """
    return Row(
        seq,
        time if isinstance(time, float) else math.nan,
        kind if isinstance(kind, str) else repr(kind),
        _body(body),
        previous if isinstance(previous, str) else repr(previous),
        digest if isinstance(digest, str) else repr(digest),
    )


def _body(text: Any) -> dict[str, Any]:
    try:
        body = json.loads(text)
        if isinstance(body, dict) and isinstance(text, str) and canonical(body) == text.encode():
            return body
    except (TypeError, ValueError, RecursionError, LedgerError):
        pass
    return {"unreadable": repr(text)}


def head(connection: sqlite3.Connection) -> Head | None:
    """Return the newest signed head; LedgerError if it is no head at all."""
    row = connection.execute(
        "SELECT federation, seq, hash, time, key, signature FROM head"
    ).fetchone()
    if row is None:
        return None
    fields = ("federation", "seq", "hash", "time", "key", "signature")
    try:
        return Head.from_json(dict(zip(fields, row, strict=True)))
    except WireError as error:
        raise LedgerError(f"the signed head was changed: {error}") from error


def events(connection: sqlite3.Connection, limit: int | None = None) -> list[dict[str, Any]]:
    """Return the newest ``limit`` events (all if None), oldest first."""
    return _newest(connection, "event", EVENT_COLUMNS, limit)


def updates(connection: sqlite3.Connection, limit: int | None = None) -> list[dict[str, Any]]:
    """Return the newest ``limit`` updates (all if None), oldest first."""
    return _newest(connection, "site_update", UPDATE_COLUMNS, limit)


def _newest(
    connection: sqlite3.Connection, table: str, columns: tuple[str, ...], limit: int | None
) -> list[dict[str, Any]]:
    rows = connection.execute(
        f"SELECT {', '.join(columns)} FROM {table} ORDER BY number DESC LIMIT ?",  # noqa: S608
        (-1 if limit is None else limit,),
    ).fetchall()
    return [dict(zip(columns, row, strict=True)) for row in reversed(rows)]


def metrics(connection: sqlite3.Connection) -> list[MetricRow]:
    """Return all measured numbers, by round, source and name."""
    rows = connection.execute(
        "SELECT round, source, name, value FROM metric ORDER BY round, source, name"
    )
    return [
        MetricRow(round, source, name, math.nan if value is None else value)
        for round, source, name, value in rows
    ]


def purges(connection: sqlite3.Connection) -> list[PurgeRow]:
    """Return what was deleted, oldest first."""
    rows = connection.execute(
        "SELECT digest, file, bytes, purposes, reason, request_id, wall, done "
        "FROM purge ORDER BY number"
    )
    return [
        PurgeRow(digest, file, size, tuple(json.loads(text)), reason, request_id, wall, bool(done))
        for digest, file, size, text, reason, request_id, wall, done in rows
    ]


def commands(connection: sqlite3.Connection, *, pending: bool = False) -> list[Command]:
    """Return the operator's commands in the order they were filed."""
    where = "WHERE outcome IS NULL" if pending else ""
    rows = connection.execute(
        f"SELECT {_COMMAND} FROM command {where} ORDER BY number"  # noqa: S608
    )
    return [Command(*row) for row in rows]


def certificates(connection: sqlite3.Connection) -> list[CertificateRow]:
    """Return all issued certificates, oldest first."""
    rows = connection.execute(
        "SELECT request_id, issue, file, sha256, wall FROM certificate ORDER BY wall, rowid"
    )
    return [CertificateRow(*row) for row in rows]


def issues(connection: sqlite3.Connection, request_id: str) -> int:
    """Return how many certificates a request has."""
    counted = "SELECT COUNT(*) FROM certificate WHERE request_id = ?"
    return int(connection.execute(counted, (request_id,)).fetchone()[0])


def newest_certificate(connection: sqlite3.Connection, request_id: str) -> CertificateRow | None:
    """Return a request's certificate of the highest issue, or None."""
    row = connection.execute(
        "SELECT request_id, issue, file, sha256, wall FROM certificate WHERE request_id = ? "
        "ORDER BY issue DESC LIMIT 1",
        (request_id,),
    ).fetchone()
    return None if row is None else CertificateRow(*row)
