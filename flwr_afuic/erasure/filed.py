"""Requests on file at a site: what they say, where they stand, and how they move."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from flwr_afuic.erasure import inbox_schema as schema
from flwr_afuic.errors import DuplicateRequestError, ErasureError
from flwr_afuic.wire import ErasureNotice

FILED = "filed"
KNOWN = "known"
CLOSED = "closed"
CANCELLING = "cancelling"
CANCELLED = "cancelled"
REFUSED = "refused"
FAILED = "failed"

_NOTICE = "id, scope, count, commitment, reason, filed_at"
_OPEN = (FILED, KNOWN, CANCELLING)
BEFORE = {
    KNOWN: (FILED,),
    CLOSED: _OPEN,
    CANCELLED: _OPEN,
    REFUSED: _OPEN,
    FAILED: (*_OPEN, CLOSED),
}


@dataclass(frozen=True)
class FiledRequest:
    """A request as the steward sees it: what travels, where it stands, and the note that stays.

    ``failure`` is the code of ``wire.FAILURE_CODES`` with which a failed one ended.
    """

    notice: ErasureNotice
    status: str
    note: str
    failure: str = ""


def status_of(connection: sqlite3.Connection, request_id: str) -> str:
    """Return where a request stands; ErasureError if it is not on file."""
    row = connection.execute("SELECT status FROM request WHERE id = ?", (request_id,)).fetchone()
    if row is None:
        raise ErasureError(f"no request {request_id!r} in this inbox")
    return str(row[0])


def read(connection: sqlite3.Connection) -> list[FiledRequest]:
    """Return every request, oldest first."""
    rows = connection.execute(
        f"SELECT {_NOTICE}, status, note, failure FROM request ORDER BY filed_at, id"  # noqa: S608
    ).fetchall()
    return [FiledRequest(ErasureNotice(*row[:-3]), *row[-3:]) for row in rows]


def enter(
    connection: sqlite3.Connection,
    notice: ErasureNotice,
    ids: Sequence[str],
    note: str,
    patients: Sequence[str] = (),
) -> ErasureNotice:
    """Put a request on file with its samples; the same one again is returned as it was.

    Of ``patients``, samples that come later are erased too.

    Raises
    ------
    DuplicateRequestError
        If the id is on file for other samples.
    """
    row = connection.execute(
        f"SELECT {_NOTICE} FROM request WHERE id = ?",  # noqa: S608
        (notice.request_id,),
    ).fetchone()
    if row is not None:
        known = ErasureNotice(*row)
        if (known.scope, known.commitment) != (notice.scope, notice.commitment):
            raise DuplicateRequestError(
                f"request {notice.request_id} is on file for other samples; "
                "file a new one under a new id"
            )
        return known
    connection.execute(
        "INSERT INTO request (id, scope, count, commitment, reason, note, filed_at, status) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            notice.request_id,
            notice.scope,
            notice.count,
            notice.commitment,
            notice.reason,
            note,
            notice.filed_at,
            FILED,
        ),
    )
    schema.hold(connection, ids)
    key = schema.derived(connection, "mark")
    connection.executemany(
        "INSERT INTO erased VALUES (?, ?)",
        [(notice.request_id, schema.mark(key, sample)) for sample in ids],
    )
    key = schema.derived(connection, schema.PATIENT)
    connection.executemany(
        "INSERT INTO erased_patient VALUES (?, ?)",
        [(notice.request_id, schema.mark(key, patient)) for patient in sorted(set(patients))],
    )
    return notice
